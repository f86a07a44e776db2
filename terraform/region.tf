data "aws_caller_identity" "current" {}

data "aws_default_tags" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

# Whether the region has every service, checked before anything is created.
data "aws_service" "used" {
  for_each = toset(["apigateway", "dynamodb", "lambda", "logs", "secretsmanager", "sns", "sqs", "states"])

  service_id = each.value
}

# A warning, not an error: a new region may have services that this version of the provider does not know.
check "region" {
  assert {
    condition     = alltrue([for service in data.aws_service.used : service.supported])
    error_message = "Region ${local.region} does not have, as far as this AWS provider knows: ${join(", ", [for name, service in data.aws_service.used : name if !service.supported])}. Choose another, or expect the apply to fail."
  }
}

locals {
  region = data.aws_region.current.id

  # The middle part of ARNs that are built from names, because two resources refer to each other (a state machine and
  # its functions, a queue and its policy), which would be a cycle.
  arn_scope = "${local.region}:${data.aws_caller_identity.current.account_id}"
}
