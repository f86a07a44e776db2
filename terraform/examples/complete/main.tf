# What an organisation with a security review and an on-call rota sets: a key and a secret of its own, roles of its own and
# a boundary for those of AWS, who may connect from where, capacity kept for the functions that must not wait, who is
# paged, who else hears of what reached nobody, logs for a year.

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

# Everything at rest is encrypted with this key. The module's statement lets AWS's services use it for Muster; the other
# lets the account's own IAM policies count.
data "aws_iam_policy_document" "key" {
  # In a key's own policy, "*" is this key.
  #checkov:skip=CKV_AWS_109: a key's own policy
  #checkov:skip=CKV_AWS_111: a key's own policy
  #checkov:skip=CKV_AWS_356: a key's own policy
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

# Whoever issues the tokens writes and rotates its value: no plan reads it.
resource "aws_secretsmanager_secret" "jwt" {
  #checkov:skip=CKV2_AWS_57: rotated by whoever issues the tokens
  name_prefix = "shelters-live-jwt-"
  description = "Signs and verifies the tokens of shelters-live's clients."
  kms_key_id  = aws_kms_key.muster.arn
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" from a configuration of your own

  name_prefix = "shelters-live"
  tags        = { environment = "live" }
  bundle_dir  = "${path.root}/../../../build" # wherever `make build` has put functions.zip, layer.zip and bundle.json

  kms_key_arn              = aws_kms_key.muster.arn
  permissions_boundary_arn = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:policy/boundary"
  deletion_protection      = true

  # HS512: whoever may read the secret issues tokens that name this issuer and this audience.
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

  # Whoever else uses up the account's concurrency, alerts go out.
  functions = {
    deliver = { memory_mb = 1024, reserved_concurrency = 100 }
    offline = { reserved_concurrency = 20 }
  }

  # The topic that the paging tool is subscribed to.
  alarm_actions = ["arn:${data.aws_partition.current.partition}:sns:eu-west-1:${data.aws_caller_identity.current.account_id}:on-call"]

  # Must confirm, by the mail that AWS sends.
  offline_subscribers = {
    duty = { protocol = "email", endpoint = "duty@example.org", filter_policy = jsonencode({ type = ["alert"] }) }
  }

  message_retention_days = 14
  log_retention_days     = 365
  access_logs            = true # once the region's API Gateway settings name a CloudWatch role
}

output "websocket_url" {
  description = "Address that clients open, with their token."
  value       = module.muster.websocket_url
}

output "publisher_policy_json" {
  description = "What a service needs to start broadcasts; attach it to the service's role."
  value       = module.muster.publisher_policy_json
}
