# Users are in a table `staff` of another system, with another key and other attribute names. A pipe
# copies each change into Muster's own users table: personId becomes userId, mail email, duty role, site shelterId, and
# people with leftOn are not active. `staff` needs a stream with NEW_IMAGE or NEW_AND_OLD_IMAGES. Not run on AWS.

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

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_dynamodb_table" "staff" {
  name = "staff"

  lifecycle {
    postcondition {
      condition     = contains(["NEW_IMAGE", "NEW_AND_OLD_IMAGES"], self.stream_view_type)
      error_message = "The table staff needs a stream with NEW_IMAGE or NEW_AND_OLD_IMAGES: its changes are copied from there."
    }
  }
}

locals {
  region          = "eu-west-1"
  account         = data.aws_caller_identity.current.account_id
  users_table_arn = "arn:${data.aws_partition.current.partition}:dynamodb:${local.region}:${local.account}:table/${module.muster.users_table}"
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" in your own configuration

  bundle_dir = "${path.root}/../../../build" # the output folder of `make build`
}

# ---- Copy each change ----------------------------------------------------------------------------------------

resource "aws_sfn_state_machine" "users" {
  name     = "staff-to-users"
  type     = "EXPRESS"
  role_arn = aws_iam_role.users["states"].arn

  definition = jsonencode(jsondecode(templatefile("${path.module}/users.asl.json", {
    partition   = data.aws_partition.current.partition
    users_table = module.muster.users_table
  })))
}

# The result of the state machine decides about the batch: a failed one is halved and retried, and the rest is kept.
resource "aws_pipes_pipe" "users" {
  name     = "staff-to-users"
  role_arn = aws_iam_role.users["pipes"].arn
  source   = data.aws_dynamodb_table.staff.stream_arn
  target   = aws_sfn_state_machine.users.arn

  source_parameters {
    dynamodb_stream_parameters {
      starting_position             = "TRIM_HORIZON"
      batch_size                    = 20
      maximum_retry_attempts        = 20
      on_partial_batch_item_failure = "AUTOMATIC_BISECT"

      dead_letter_config {
        arn = aws_sqs_queue.failed.arn
      }
    }
  }

  target_parameters {
    step_function_state_machine_parameters {
      invocation_type = "REQUEST_RESPONSE"
    }
  }

  depends_on = [aws_iam_role_policy.users]
}

# Positions in the stream of changes that could not be copied. Set an alarm: until then, a removed user may still connect.
resource "aws_sqs_queue" "failed" {
  name                      = "staff-to-users-failed"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

# ---- Permissions ---------------------------------------------------------------------------------------------

data "aws_iam_policy_document" "trust" {
  for_each = toset(["pipes", "states"])

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

data "aws_iam_policy_document" "users" {
  for_each = {
    states = [
      { actions = ["dynamodb:DeleteItem", "dynamodb:PutItem"], resource = local.users_table_arn },
    ]
    pipes = [
      { actions = ["states:StartSyncExecution"], resource = aws_sfn_state_machine.users.arn },
      { actions = ["sqs:SendMessage"], resource = aws_sqs_queue.failed.arn },
      {
        actions  = ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams"]
        resource = data.aws_dynamodb_table.staff.stream_arn
      },
    ]
  }

  dynamic "statement" {
    for_each = each.value

    content {
      actions   = statement.value.actions
      resources = [statement.value.resource]
    }
  }
}

resource "aws_iam_role" "users" {
  for_each = data.aws_iam_policy_document.trust

  name_prefix        = "staff-to-users-${each.key}-"
  assume_role_policy = each.value.json
}

resource "aws_iam_role_policy" "users" {
  for_each = data.aws_iam_policy_document.users

  role   = aws_iam_role.users[each.key].id
  policy = each.value.json
}

output "websocket_url" {
  description = "WebSocket URL for clients; they also send their token."
  value       = module.muster.websocket_url
}
