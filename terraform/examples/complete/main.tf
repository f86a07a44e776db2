# For an organisation with a security review and an on-call rota: its own key, secret and roles, a permissions boundary,
# allowed origins, reserved concurrency, alarm actions, subscribers for offline users, and logs for a year.

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

  default_tags {
    tags = { owner = "shelter-platform" }
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

# This key encrypts everything at rest. The module's statement lets AWS services use it for Muster; the other statement
# lets the account's IAM policies grant access to it.
data "aws_iam_policy_document" "key" {
  # In a key policy, "*" means this key.
  #checkov:skip=CKV_AWS_109: a key policy
  #checkov:skip=CKV_AWS_111: a key policy
  #checkov:skip=CKV_AWS_356: a key policy
  source_policy_documents = [module.muster.kms_key_policy_json]

  statement {
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }
}

resource "aws_kms_key" "muster" {
  description         = "Muster's tables, messages, secret and logs."
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
}

# The token issuer writes and rotates its value. No plan reads it.
resource "aws_secretsmanager_secret" "jwt" {
  #checkov:skip=CKV2_AWS_57: rotated by the token issuer
  name_prefix = "shelters-live-jwt-"
  description = "Signs and verifies the tokens of shelters-live's clients."
  kms_key_id  = aws_kms_key.muster.arn
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" in your own configuration

  name_prefix = "shelters-live"
  tags        = { environment = "live" }
  bundle_dir  = "${path.root}/../../../build" # the output folder of `make build`

  kms_key_arn              = aws_kms_key.muster.arn
  permissions_boundary_arn = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:policy/boundary"
  deletion_protection      = true

  # HS512: a service that can read the secret can sign tokens with this issuer and audience.
  jwt = {
    algorithms = ["HS512"]
    issuer     = "https://accounts.example.org"
    audience   = "shelters-live"
    secret     = { arn = aws_secretsmanager_secret.jwt.arn, kms_key_arn = aws_kms_key.muster.arn }
  }

  roles = {
    dispatcher = { actions = ["alert", "broadcast", "shelter_update"] }
    warden     = { actions = ["shelter_update"], own_shelter_only = true }
    guest      = { actions = [] }
  }

  allowed_origins = ["https://app.example.org"]

  # Alerts are sent even if other functions use up the account's concurrency.
  functions = {
    deliver = { memory_mb = 1024, reserved_concurrency = 100 }
    offline = { reserved_concurrency = 20 }
  }

  # The SNS topic of the paging tool.
  alarm_actions = ["arn:${data.aws_partition.current.partition}:sns:eu-west-1:${data.aws_caller_identity.current.account_id}:on-call"]

  # Must confirm through an e-mail from AWS.
  offline_subscribers = {
    duty = { protocol = "email", endpoint = "duty@example.org", filter_policy = jsonencode({ type = ["alert"] }) }
  }

  message_retention_days = 14
  log_retention_days     = 365
  access_logs            = true # needs a CloudWatch role in the region's API Gateway settings
}

output "websocket_url" {
  description = "WebSocket URL for clients; they also send their token."
  value       = module.muster.websocket_url
}

output "publisher_policy_json" {
  description = "Policy that lets a service start broadcasts; attach it to the service's role."
  value       = module.muster.publisher_policy_json
}
