# Users sign in to a Cognito user pool. Its public keys verify their ID tokens, so no secret is shared.

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
  region = local.region
}

locals {
  region = "eu-west-1"
  issuer = "https://cognito-idp.${local.region}.amazonaws.com/${aws_cognito_user_pool.people.id}"
}

resource "aws_cognito_user_pool" "people" {
  name                = "shelter-people"
  deletion_protection = "ACTIVE"

  admin_create_user_config {
    allow_admin_create_user_only = true
  }
}

# A phone or a browser cannot keep a secret, so the app client has none.
resource "aws_cognito_user_pool_client" "app" {
  name                = "shelter-app"
  user_pool_id        = aws_cognito_user_pool.people.id
  explicit_auth_flows = ["ALLOW_USER_SRP_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"]
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" in your own configuration

  bundle_dir = "${path.root}/../../../build"

  # Clients send the ID token: its `aud` is the app client's id, while an access token has none. Its `sub` is the
  # userId of the users table.
  jwt = {
    algorithms = ["RS256"]
    issuer     = local.issuer
    audience   = aws_cognito_user_pool_client.app.id
    jwks_url   = "${local.issuer}/.well-known/jwks.json"
  }
}

output "websocket_url" {
  description = "Address that clients open, with their ID token."
  value       = module.muster.websocket_url
}

output "user_pool_client_id" {
  description = "App client that users sign in with."
  value       = aws_cognito_user_pool_client.app.id
}
