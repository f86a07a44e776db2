# The people are in a table that another system keeps. Muster reads it, and neither changes nor destroys it.

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

# Its only key is userId; ../../../docs/data.md has the attributes that are read.
data "aws_dynamodb_table" "people" {
  name = "people"
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" from a configuration of your own

  bundle_dir = "${path.root}/../../../build" # wherever `make build` has put functions.zip, layer.zip and bundle.json

  existing_tables = {
    users = {
      arn         = data.aws_dynamodb_table.people.arn
      kms_key_arn = one(data.aws_dynamodb_table.people.server_side_encryption[*].kms_key_arn)
    }
  }
}

output "websocket_url" {
  description = "Address that clients open, with their token."
  value       = module.muster.websocket_url
}
