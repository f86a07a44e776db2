# Everything at its default: a secret of its own signs the tokens, and five roles may send what they may.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region = "eu-west-1"
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" from a configuration of your own

  bundle_dir = "${path.root}/../../../build" # wherever `make build` has put functions.zip, layer.zip and bundle.json
}

output "websocket_url" {
  description = "Address that clients open, with their token."
  value       = module.muster.websocket_url
}

output "jwt_secret_arn" {
  description = "Secret with which your backend signs its clients' tokens."
  value       = module.muster.jwt_secret_arn
}
