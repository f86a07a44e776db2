# With a customer managed key: what it encrypts, who may use it, and what its own policy must allow.

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

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  access_logs     = true
  kms_key_arn     = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  jwt = {
    secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf", kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/0000aaaa-00aa-00aa-00aa-000000000000" }
  }
}

run "the_key_encrypts_everything" {
  command = plan

  assert {
    condition = alltrue([
      for key in concat(
        [for table in aws_dynamodb_table.this : table.server_side_encryption[0].enabled ? table.server_side_encryption[0].kms_key_arn : null],
        [for machine in aws_sfn_state_machine.this : machine.encryption_configuration[0].kms_key_id],
        [for group in concat(aws_cloudwatch_log_group.access, values(aws_cloudwatch_log_group.state_machine)) : group.kms_key_id],
        [for function in module.function : function.kms_key_arn],
        [aws_sns_topic.offline.kms_master_key_id],
        [for queue in [aws_sqs_queue.offline, aws_sqs_queue.offline_dead_letters, aws_sqs_queue.offline_undeliverable] : queue.kms_master_key_id],
      ) : key == var.kms_key_arn
    ])
    error_message = "Tables, machines, logs, functions, topic and queues are encrypted by the key."
  }

  assert {
    condition     = alltrue([for machine in aws_sfn_state_machine.this : machine.encryption_configuration[0].type == "CUSTOMER_MANAGED_KMS_KEY"])
    error_message = "The machines use the key."
  }
}

run "each_use_is_bound_to_its_thing" {
  command = plan

  assert {
    condition = { for name, statements in local.kms_statements : name => [one(statements).actions, one(statements).resources, one(statements).conditions] } == {
      connections_table = [
        ["kms:Decrypt"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:dynamodb:tableName" = ["muster-connections"], "kms:ViaService" = ["dynamodb.eu-west-1.amazonaws.com"] } },
      ]
      messages_table = [
        ["kms:Decrypt"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:dynamodb:tableName" = ["muster-messages"], "kms:ViaService" = ["dynamodb.eu-west-1.amazonaws.com"] } },
      ]
      shelters_table = [
        ["kms:Decrypt"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:dynamodb:tableName" = ["muster-shelters"], "kms:ViaService" = ["dynamodb.eu-west-1.amazonaws.com"] } },
      ]
      users_table = [
        ["kms:Decrypt"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:dynamodb:tableName" = ["muster-users"], "kms:ViaService" = ["dynamodb.eu-west-1.amazonaws.com"] } },
      ]
      broadcast_machine = [
        ["kms:Decrypt", "kms:GenerateDataKey"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:states:stateMachineArn" = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-broadcast"] } },
      ]
      broadcast_execution = [
        ["kms:Decrypt"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:states:stateMachineArn" = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-broadcast"] } },
      ]
      fanout_machine = [
        ["kms:Decrypt", "kms:GenerateDataKey"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:states:stateMachineArn" = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-fanout"] } },
      ]
      fanout_execution = [
        ["kms:Decrypt"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:states:stateMachineArn" = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-fanout"] } },
      ]
      log_delivery = [
        ["kms:GenerateDataKey"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:SourceArn" = ["arn:aws:logs:eu-west-1:123456789012:*"] } },
      ]
      offline_topic = [
        ["kms:Decrypt", "kms:GenerateDataKey"], [var.kms_key_arn],
        { StringEquals = { "kms:EncryptionContext:aws:sns:topicArn" = ["arn:aws:sns:eu-west-1:123456789012:muster-offline"], "kms:ViaService" = ["sns.eu-west-1.amazonaws.com"] } },
      ]
      jwt_secret = [
        ["kms:Decrypt"], ["arn:aws:kms:eu-west-1:123456789012:key/0000aaaa-00aa-00aa-00aa-000000000000"],
        { StringEquals = { "kms:EncryptionContext:SecretARN" = ["arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf"], "kms:ViaService" = ["secretsmanager.eu-west-1.amazonaws.com"] } },
      ]
    }
    error_message = "Each use names one key, and the one thing that it decrypts."
  }
}

# A role that may use a resource may use its key, and no other role may.
run "who_may_use_the_key" {
  command = plan

  assert {
    condition = {
      for name, statements in merge(
        { for name, function in local.functions : name => function.statements },
        { for name, machine in local.state_machines : "${name} machine" => machine.statements },
        { publisher = local.broadcast_statements },
      ) :
      name => join(" ", [for use, granted in local.kms_statements : use if contains(statements, one(granted))])
      } == {
      accept              = ""
      connect             = "connections_table jwt_secret users_table"
      default             = "broadcast_execution connections_table jwt_secret messages_table users_table"
      deliver             = ""
      disconnect          = "connections_table"
      offline             = "connections_table messages_table offline_topic users_table"
      "broadcast machine" = "fanout_execution messages_table offline_topic"
      "fanout machine"    = "connections_table offline_topic"
      publisher           = "broadcast_execution"
    }
    error_message = "A role uses the keys of what it touches."
  }
}

# Put on the role before there is a machine: making the machine is refused until IAM knows it.
run "what_making_a_machine_needs" {
  command = plan

  assert {
    condition = alltrue([
      for name, policy in aws_iam_role_policy.state_machine_telemetry : slice(jsondecode(policy.policy).Statement, 0, 2) == [
        {
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
          Resource  = [var.kms_key_arn]
          Condition = { StringEquals = { "kms:EncryptionContext:aws:states:stateMachineArn" = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-${name}"] } }
        },
        {
          Effect    = "Allow"
          Action    = ["kms:GenerateDataKey"]
          Resource  = [var.kms_key_arn]
          Condition = { StringEquals = { "kms:EncryptionContext:SourceArn" = ["arn:aws:logs:eu-west-1:123456789012:*"] } }
        },
      ]
    ])
    error_message = "A machine may use the key for itself and for its logs, by a policy that is known when planned."
  }
}

run "policy_of_the_key" {
  command = plan

  assert {
    condition = jsondecode(output.kms_key_policy_json).Statement == [
      {
        Effect    = "Allow"
        Principal = { Service = "logs.eu-west-1.amazonaws.com" }
        Action    = ["kms:Decrypt", "kms:Describe*", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
        Resource  = "*"
        Condition = { ArnLike = { "kms:EncryptionContext:aws:logs:arn" = [
          "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/apigateway/muster",
          "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-*",
          "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/vendedlogs/states/muster-*",
        ] } }
      },
      {
        Effect    = "Allow"
        Principal = { Service = "delivery.logs.amazonaws.com" }
        Action    = ["kms:Decrypt"]
        Resource  = "*"
        Condition = { StringEquals = { "kms:EncryptionContext:SourceArn" = "arn:aws:logs:eu-west-1:123456789012:*" } }
      },
      {
        Effect    = "Allow"
        Principal = { Service = "sns.amazonaws.com" }
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = "*"
        Condition = { ArnEquals = { "aws:SourceArn" = "arn:aws:sns:eu-west-1:123456789012:muster-offline" } }
      },
    ]
    error_message = "Logs, log delivery and the topic may use the key for this deployment's own things."
  }

  assert {
    condition = alltrue([
      for group in concat(aws_cloudwatch_log_group.access, values(aws_cloudwatch_log_group.state_machine), [for function in module.function : { name = function.log_group }]) :
      anytrue([
        for pattern in jsondecode(output.kms_key_policy_json).Statement[0].Condition.ArnLike["kms:EncryptionContext:aws:logs:arn"] :
        can(regex("^${replace(pattern, "*", ".*")}$", "arn:aws:logs:eu-west-1:123456789012:log-group:${group.name}"))
      ])
    ])
    error_message = "The key's policy covers every log group."
  }
}

run "without_a_key" {
  command = plan

  variables {
    kms_key_arn = null
    jwt         = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
  }

  assert {
    condition     = alltrue([for statements in local.kms_statements : length(statements) == 0])
    error_message = "AWS's own keys need no permission."
  }

  assert {
    condition     = alltrue([for machine in aws_sfn_state_machine.this : machine.encryption_configuration[0].type == "AWS_OWNED_KEY"])
    error_message = "The machines are encrypted by AWS's key."
  }

  assert {
    condition = alltrue([
      for table in aws_dynamodb_table.this : length(table.server_side_encryption) == 1 && !table.server_side_encryption[0].enabled
    ])
    error_message = "Tables use the key that DynamoDB owns, which is free. Without the block, a table would keep its key."
  }
}
