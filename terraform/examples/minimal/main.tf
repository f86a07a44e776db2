# All defaults: the module creates the secret that signs tokens, and there are five roles.

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
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" in your own configuration

  bundle_dir = "${path.root}/../../../build" # the output folder of `make build`
}

output "websocket_url" {
  description = "WebSocket URL for clients; they also send their token."
  value       = module.muster.websocket_url
}

output "jwt_secret_arn" {
  description = "Secret that your backend signs client tokens with."
  value       = module.muster.jwt_secret_arn
}
