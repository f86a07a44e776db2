# Users are in a table of another system. Muster reads it and never changes or destroys it.

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

# Its only key is userId. ../../../docs/data.md lists the attributes that Muster reads.
data "aws_dynamodb_table" "people" {
  name = "people"
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" in your own configuration

  bundle_dir = "${path.root}/../../../build" # the output folder of `make build`

  existing_tables = {
    users = {
      arn         = data.aws_dynamodb_table.people.arn
      kms_key_arn = one(data.aws_dynamodb_table.people.server_side_encryption[*].kms_key_arn)
    }
  }
}

output "websocket_url" {
  description = "WebSocket URL for clients; they also send their token."
  value       = module.muster.websocket_url
}
