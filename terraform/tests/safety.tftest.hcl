# Settings that keep data: encryption, recovery, retention, dead letters, traces; and none of it in the clear.

# Not mock_provider: Terraform cannot mock an ephemeral resource. The real one plans offline once it need not ask who
# calls, nor for a password (hence a secret below).
provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

override_resource {
  target          = aws_sns_topic.offline
  override_during = plan
  values          = { arn = "arn:aws:sns:eu-west-1:123456789012:muster-offline" }
}

override_resource {
  target          = aws_sqs_queue.offline_dead_letters
  override_during = plan
  values          = { arn = "arn:aws:sqs:eu-west-1:123456789012:muster-offline-dlq" }
}

override_resource {
  target          = aws_sqs_queue.offline_undeliverable
  override_during = plan
  values          = { arn = "arn:aws:sqs:eu-west-1:123456789012:muster-offline-undeliverable" }
}

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  jwt             = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
}

run "tables" {
  command = plan

  assert {
    condition     = { for name, table in aws_dynamodb_table.this : name => table.name } == { for name in ["connections", "messages", "shelters", "users"] : name => "muster-${name}" }
    error_message = "Four tables."
  }

  assert {
    condition = alltrue([
      for table in aws_dynamodb_table.this :
      table.billing_mode == "PAY_PER_REQUEST" && table.point_in_time_recovery[0].enabled
    ])
    error_message = "Every table is on demand and recoverable to a point in time."
  }

  assert {
    condition     = alltrue([for table in aws_dynamodb_table.this : table.deletion_protection_enabled])
    error_message = "No table can be deleted by mistake."
  }

  assert {
    condition = (
      [for name, table in local.tables : name if can(table.expires)] == ["connections", "messages"] &&
      alltrue([for name in ["connections", "messages"] : one(aws_dynamodb_table.this[name].ttl) == { attribute_name = "ttl", enabled = true }])
    )
    error_message = "Connections and messages expire; users and shelters never do."
  }

  assert {
    condition = {
      for index in aws_dynamodb_table.this["connections"].global_secondary_index :
      index.name => join(" ", concat([index.hash_key, index.projection_type], sort(coalesce(index.non_key_attributes, []))))
      } == {
      AllIndex     = "shard INCLUDE connectedAt role shelterId ttl userId"
      RoleIndex    = "roleShard INCLUDE connectedAt role shelterId ttl userId"
      ShelterIndex = "shelterId INCLUDE connectedAt role ttl userId"
      UserIndex    = "userId ALL"
    }
    error_message = "Each index projects what fanout reads."
  }

  assert {
    condition     = [for name, table in aws_dynamodb_table.this : name if table.stream_enabled] == ["shelters"]
    error_message = "The shelters stream, and nothing else does."
  }
}

run "no_deletion_protection" {
  command = plan

  variables {
    deletion_protection = false
  }

  assert {
    condition     = !anytrue([for table in aws_dynamodb_table.this : table.deletion_protection_enabled])
    error_message = "Without protection every table can be deleted."
  }
}

run "permissions_boundary" {
  command = plan

  variables {
    permissions_boundary_arn = "arn:aws:iam::123456789012:policy/boundary"
  }

  assert {
    condition     = { for name, role in aws_iam_role.state_machine : name => role.permissions_boundary } == { for name in ["broadcast", "fanout"] : name => "arn:aws:iam::123456789012:policy/boundary" }
    error_message = "The boundary holds the state machines' roles."
  }

  assert {
    condition     = { for name, function in module.function : name => function.permissions_boundary } == { for name in keys(local.functions) : name => "arn:aws:iam::123456789012:policy/boundary" }
    error_message = "The boundary holds the functions' roles."
  }
}

run "offline" {
  command = plan

  variables {
    message_retention_days = 30
  }

  assert {
    condition = alltrue([
      for queue in [aws_sqs_queue.offline, aws_sqs_queue.offline_dead_letters, aws_sqs_queue.offline_undeliverable] :
      queue.sqs_managed_sse_enabled && queue.message_retention_seconds == 1209600
    ])
    error_message = "Every queue is encrypted and keeps messages as long as asked, up to the 14 days of SQS."
  }

  assert {
    condition     = aws_sns_topic.offline.kms_master_key_id == "alias/aws/sns"
    error_message = "The topic is encrypted."
  }

  assert {
    condition = alltrue([
      for policy in [
        aws_sns_topic_policy.offline.policy,
        aws_sqs_queue.offline.policy,
        aws_sqs_queue.offline_dead_letters.policy,
        aws_sqs_queue.offline_undeliverable.policy,
      ] :
      jsondecode(policy).Statement[0].Effect == "Deny" &&
      jsondecode(policy).Statement[0].Principal == "*" &&
      jsondecode(policy).Statement[0].Condition == { Bool = { "aws:SecureTransport" = "false" } }
    ])
    error_message = "Plain HTTP is refused by the topic and by every queue."
  }

  assert {
    condition = alltrue([
      for name, policy in {
        "muster-offline"               = aws_sqs_queue.offline.policy
        "muster-offline-undeliverable" = aws_sqs_queue.offline_undeliverable.policy
      } :
      slice(jsondecode(policy).Statement, 1, length(jsondecode(policy).Statement)) == [{
        Sid       = "AllowTopic"
        Effect    = "Allow"
        Principal = { Service = "sns.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = "arn:aws:sqs:eu-west-1:123456789012:${name}"
        Condition = { ArnEquals = { "aws:SourceArn" = "arn:aws:sns:eu-west-1:123456789012:muster-offline" } }
      }]
    ])
    error_message = "The queue policies allow the topic, and nobody else."
  }

  assert {
    condition     = length(jsondecode(aws_sqs_queue.offline_dead_letters.policy).Statement) == 1
    error_message = "The dead-letter queue's policy allows nobody: SQS needs none to move messages there."
  }

  assert {
    condition     = jsondecode(aws_sqs_queue.offline.redrive_policy).deadLetterTargetArn == "arn:aws:sqs:eu-west-1:123456789012:muster-offline-dlq"
    error_message = "What consumers fail to handle goes to the dead-letter queue."
  }

  assert {
    condition     = jsondecode(aws_sqs_queue.offline_dead_letters.redrive_allow_policy).sourceQueueArns == ["arn:aws:sqs:eu-west-1:123456789012:muster-offline"]
    error_message = "Only the offline queue may use the dead-letter queue."
  }

  assert {
    condition = (
      jsondecode(aws_sns_topic_subscription.offline.redrive_policy).deadLetterTargetArn == "arn:aws:sqs:eu-west-1:123456789012:muster-offline-undeliverable" &&
      !aws_sns_topic_subscription.offline.raw_message_delivery
    )
    error_message = "The queue gets whole notifications, and what it cannot take is kept."
  }
}

run "offline_subscribers" {
  command = plan

  variables {
    offline_subscribers = {
      archive  = { protocol = "firehose", endpoint = "arn:aws:firehose:eu-west-1:123456789012:deliverystream/archive", subscription_role_arn = "arn:aws:iam::123456789012:role/sns-to-archive", raw_message_delivery = true }
      duty     = { protocol = "sms", endpoint = "+15551230000", filter_policy = jsonencode({ type = ["alert"] }) }
      kitchen  = { protocol = "sqs", endpoint = "arn:aws:sqs:eu-west-1:123456789012:kitchen", filter_policy = jsonencode({ message = { sender = { service = ["kitchen"] } } }), filter_policy_scope = "MessageBody" }
      office   = { protocol = "email", endpoint = "office@example.org" }
      partner  = { protocol = "https", endpoint = "https://partner.example.org/hook" }
      wording  = { protocol = "lambda", endpoint = "arn:aws:lambda:eu-west-1:123456789012:function:wording" }
      wording2 = { protocol = "lambda", endpoint = "arn:aws:lambda:eu-west-1:123456789012:function:wording:live" }
    }
  }

  assert {
    condition = { for name, subscription in aws_sns_topic_subscription.subscriber : name => join(" ", [subscription.protocol, subscription.endpoint]) } == {
      archive  = "firehose arn:aws:firehose:eu-west-1:123456789012:deliverystream/archive"
      duty     = "sms +15551230000"
      kitchen  = "sqs arn:aws:sqs:eu-west-1:123456789012:kitchen"
      office   = "email office@example.org"
      partner  = "https https://partner.example.org/hook"
      wording  = "lambda arn:aws:lambda:eu-west-1:123456789012:function:wording"
      wording2 = "lambda arn:aws:lambda:eu-west-1:123456789012:function:wording:live"
    }
    error_message = "Each subscriber is subscribed."
  }

  assert {
    condition = alltrue([
      for subscription in aws_sns_topic_subscription.subscriber :
      subscription.topic_arn == aws_sns_topic.offline.arn &&
      jsondecode(subscription.redrive_policy).deadLetterTargetArn == "arn:aws:sqs:eu-west-1:123456789012:muster-offline-undeliverable"
    ])
    error_message = "What a subscriber cannot take is kept."
  }

  assert {
    condition = (
      aws_sns_topic_subscription.subscriber["duty"].filter_policy == jsonencode({ type = ["alert"] }) &&
      aws_sns_topic_subscription.subscriber["duty"].filter_policy_scope == "MessageAttributes" &&
      aws_sns_topic_subscription.subscriber["kitchen"].filter_policy_scope == "MessageBody"
    )
    error_message = "Subscribers get what their filter lets through."
  }

  assert {
    condition = (
      [for name, subscription in aws_sns_topic_subscription.subscriber : name if subscription.raw_message_delivery] == ["archive"] &&
      aws_sns_topic_subscription.subscriber["archive"].subscription_role_arn == "arn:aws:iam::123456789012:role/sns-to-archive"
    )
    error_message = "Raw delivery is on request, and Firehose is written to by a role of yours."
  }

  assert {
    condition = {
      for name, permission in aws_lambda_permission.subscriber :
      name => join(" ", compact([permission.function_name, permission.qualifier, permission.principal, permission.source_arn]))
      } == {
      wording  = "arn:aws:lambda:eu-west-1:123456789012:function:wording sns.amazonaws.com ${aws_sns_topic.offline.arn}"
      wording2 = "arn:aws:lambda:eu-west-1:123456789012:function:wording live sns.amazonaws.com ${aws_sns_topic.offline.arn}"
    }
    error_message = "The topic, and nobody else, may invoke the functions that are subscribed."
  }
}

run "state_machines" {
  command = plan

  assert {
    condition     = { for name, machine in aws_sfn_state_machine.this : machine.name => machine.type } == { "muster-broadcast" = "STANDARD", "muster-fanout" = "EXPRESS" }
    error_message = "broadcast is durable, fanout is Express."
  }

  assert {
    condition = alltrue([
      for machine in aws_sfn_state_machine.this :
      machine.tracing_configuration[0].enabled &&
      machine.logging_configuration[0].level == "ERROR" &&
      !machine.logging_configuration[0].include_execution_data
    ])
    error_message = "Every machine is traced, and logs its errors without payloads."
  }
}

run "logs_expire" {
  command = plan

  variables {
    log_retention_days = 90
  }

  assert {
    condition     = alltrue([for group in concat(aws_cloudwatch_log_group.access, values(aws_cloudwatch_log_group.state_machine)) : group.retention_in_days == 90])
    error_message = "Every log group keeps its events as long as asked."
  }
}

# The secret alone, since its value is asked of AWS.
run "secret_made_here" {
  command = plan

  plan_options {
    target = [aws_secretsmanager_secret.jwt]
  }

  variables {
    jwt         = {}
    kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition = (
      aws_secretsmanager_secret.jwt[0].recovery_window_in_days == 30 &&
      aws_secretsmanager_secret.jwt[0].kms_key_id == "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    )
    error_message = "The secret is encrypted by the key, and can be restored for 30 days."
  }
}

run "secret_made_here_without_protection" {
  command = plan

  plan_options {
    target = [aws_secretsmanager_secret.jwt]
  }

  variables {
    jwt                 = {}
    deletion_protection = false
  }

  assert {
    condition     = aws_secretsmanager_secret.jwt[0].recovery_window_in_days == 0
    error_message = "Without protection the secret goes at once."
  }
}
