# Who may do what: the exact actions on the exact resources, and nothing beside them.

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
  target          = aws_apigatewayv2_api.this
  override_during = plan
  values          = { execution_arn = "arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5" }
}

override_resource {
  target          = aws_dynamodb_table.this["connections"]
  override_during = plan
  values          = { arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections" }
}

override_resource {
  target          = aws_dynamodb_table.this["messages"]
  override_during = plan
  values          = { arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-messages" }
}

override_resource {
  target          = aws_dynamodb_table.this["users"]
  override_during = plan
  values          = { arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-users" }
}

override_resource {
  target          = module.function["accept"].aws_lambda_function.this
  override_during = plan
  values          = { arn = "arn:aws:lambda:eu-west-1:123456789012:function:muster-accept" }
}

override_resource {
  target          = module.function["deliver"].aws_lambda_function.this
  override_during = plan
  values          = { arn = "arn:aws:lambda:eu-west-1:123456789012:function:muster-deliver" }
}

override_resource {
  target          = module.function["offline"].aws_lambda_function.this
  override_during = plan
  values          = { arn = "arn:aws:lambda:eu-west-1:123456789012:function:muster-offline" }
}

override_resource {
  target          = aws_sns_topic.offline
  override_during = plan
  values          = { arn = "arn:aws:sns:eu-west-1:123456789012:muster-offline" }
}

override_resource {
  target          = module.function["connect"].aws_cloudwatch_log_group.this
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-connect" }
}

override_resource {
  target          = module.function["disconnect"].aws_cloudwatch_log_group.this
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-disconnect" }
}

override_resource {
  target          = module.function["default"].aws_cloudwatch_log_group.this
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-default" }
}

override_resource {
  target          = module.function["accept"].aws_cloudwatch_log_group.this
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-accept" }
}

override_resource {
  target          = module.function["deliver"].aws_cloudwatch_log_group.this
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-deliver" }
}

override_resource {
  target          = module.function["offline"].aws_cloudwatch_log_group.this
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-offline" }
}

# With every ARN known, the provider would ask AWS to validate the definitions.
override_resource {
  target = aws_sfn_state_machine.this
}

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  jwt             = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
}

run "functions" {
  command = plan

  assert {
    condition = jsondecode(module.function["connect"].policy).Statement == [
      { Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = ["arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf"] },
      { Effect = "Allow", Action = ["dynamodb:GetItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-users"] },
      { Effect = "Allow", Action = ["dynamodb:PutItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections"] },
      { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-connect:*"] },
      { Effect = "Allow", Action = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], Resource = ["*"] },
    ]
    error_message = "connect reads the secret and the user, and stores the connection."
  }

  assert {
    condition = jsondecode(module.function["disconnect"].policy).Statement == [
      { Effect = "Allow", Action = ["dynamodb:DeleteItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections"] },
      { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-disconnect:*"] },
      { Effect = "Allow", Action = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], Resource = ["*"] },
    ]
    error_message = "disconnect deletes the connection."
  }

  assert {
    condition = jsondecode(module.function["default"].policy).Statement == [
      { Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = ["arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf"] },
      { Effect = "Allow", Action = ["states:StartExecution"], Resource = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-broadcast"] },
      { Effect = "Allow", Action = ["states:DescribeExecution"], Resource = ["arn:aws:states:eu-west-1:123456789012:execution:muster-broadcast:*"] },
      { Effect = "Allow", Action = ["dynamodb:UpdateItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections"] },
      { Effect = "Allow", Action = ["dynamodb:GetItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-users"] },
      { Effect = "Allow", Action = ["dynamodb:Query"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-messages"] },
      {
        Effect = "Allow"
        Action = ["execute-api:ManageConnections"]
        Resource = [
          "arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5/live/DELETE/@connections/*",
          "arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5/live/POST/@connections/*",
        ]
      },
      { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-default:*"] },
      { Effect = "Allow", Action = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], Resource = ["*"] },
    ]
    error_message = "default starts broadcasts, reads messages, keeps the connection's row and closes or answers the connection."
  }

  assert {
    condition = jsondecode(module.function["accept"].policy).Statement == [
      { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-accept:*"] },
      { Effect = "Allow", Action = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], Resource = ["*"] },
    ]
    error_message = "accept touches nothing."
  }

  assert {
    condition = jsondecode(module.function["deliver"].policy).Statement == [
      { Effect = "Allow", Action = ["execute-api:ManageConnections"], Resource = ["arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5/live/POST/@connections/*"] },
      { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-deliver:*"] },
      { Effect = "Allow", Action = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], Resource = ["*"] },
    ]
    error_message = "deliver posts to connections."
  }

  assert {
    condition = jsondecode(module.function["offline"].policy).Statement == [
      { Effect = "Allow", Action = ["dynamodb:BatchGetItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-users"] },
      { Effect = "Allow", Action = ["dynamodb:DeleteItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections"] },
      { Effect = "Allow", Action = ["dynamodb:Query"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections/index/UserIndex"] },
      { Effect = "Allow", Action = ["dynamodb:UpdateItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-messages"] },
      { Effect = "Allow", Action = ["sns:Publish"], Resource = ["arn:aws:sns:eu-west-1:123456789012:muster-offline"] },
      { Effect = "Allow", Action = ["logs:CreateLogStream", "logs:PutLogEvents"], Resource = ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/muster-offline:*"] },
      { Effect = "Allow", Action = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], Resource = ["*"] },
    ]
    error_message = "offline looks up users and their connections, claims and publishes notifications, and deletes the rows of gone connections."
  }
}

run "state_machines" {
  command = plan

  assert {
    condition = jsondecode(aws_iam_role_policy.state_machine["broadcast"].policy).Statement == [
      { Effect = "Allow", Action = ["lambda:InvokeFunction"], Resource = ["arn:aws:lambda:eu-west-1:123456789012:function:muster-accept"] },
      { Effect = "Allow", Action = ["dynamodb:PutItem"], Resource = ["arn:aws:dynamodb:eu-west-1:123456789012:table/muster-messages"] },
      { Effect = "Allow", Action = ["states:StartSyncExecution"], Resource = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-fanout"] },
      { Effect = "Allow", Action = ["sns:Publish"], Resource = ["arn:aws:sns:eu-west-1:123456789012:muster-offline"] },
      { Effect = "Allow", Action = ["cloudwatch:PutMetricData"], Resource = ["*"], Condition = { StringEquals = { "cloudwatch:namespace" = ["Muster"] } } },
    ]
    error_message = "broadcast invokes accept, records the message, runs fanout, notifies, and counts what it could not reach."
  }

  assert {
    condition = jsondecode(aws_iam_role_policy.state_machine["fanout"].policy).Statement == [
      {
        Effect = "Allow"
        Action = ["dynamodb:Query"]
        Resource = [
          "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections/index/AllIndex",
          "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections/index/RoleIndex",
          "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections/index/ShelterIndex",
          "arn:aws:dynamodb:eu-west-1:123456789012:table/muster-connections/index/UserIndex",
        ]
      },
      {
        Effect = "Allow"
        Action = ["lambda:InvokeFunction"]
        Resource = [
          "arn:aws:lambda:eu-west-1:123456789012:function:muster-deliver",
          "arn:aws:lambda:eu-west-1:123456789012:function:muster-offline",
        ]
      },
      { Effect = "Allow", Action = ["sns:Publish"], Resource = ["arn:aws:sns:eu-west-1:123456789012:muster-offline"] },
      { Effect = "Allow", Action = ["cloudwatch:PutMetricData"], Resource = ["*"], Condition = { StringEquals = { "cloudwatch:namespace" = ["Muster"] } } },
    ]
    error_message = "fanout queries the indexes, invokes deliver and offline, notifies, and counts what it could not reach."
  }

  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.state_machine_telemetry : jsonencode(jsondecode(policy.policy).Statement) == jsonencode([
        {
          Action = [
            "logs:CreateLogDelivery",
            "logs:DeleteLogDelivery",
            "logs:DescribeLogGroups",
            "logs:DescribeResourcePolicies",
            "logs:GetLogDelivery",
            "logs:ListLogDeliveries",
            "logs:PutResourcePolicy",
            "logs:UpdateLogDelivery",
            "xray:GetSamplingRules",
            "xray:GetSamplingTargets",
            "xray:PutTelemetryRecords",
            "xray:PutTraceSegments",
          ]
          Effect   = "Allow"
          Resource = ["*"]
        },
      ])
    ])
    error_message = "A machine also delivers its logs and traces, and does nothing more."
  }

  assert {
    condition     = toset(keys(aws_iam_role.state_machine)) == toset(["broadcast", "fanout"]) && toset(keys(module.function)) == toset(["accept", "connect", "default", "deliver", "disconnect", "offline"])
    error_message = "A role that is new belongs into this file."
  }

  assert {
    condition = alltrue([
      for role in aws_iam_role.state_machine :
      jsonencode(jsondecode(role.assume_role_policy).Statement) == jsonencode([{
        Action = "sts:AssumeRole"
        Condition = {
          ArnLike      = { "aws:SourceArn" = "arn:aws:states:eu-west-1:123456789012:stateMachine:*" }
          StringEquals = { "aws:SourceAccount" = "123456789012" }
        }
        Effect    = "Allow"
        Principal = { Service = "states.amazonaws.com" }
      }])
    ])
    error_message = "Step Functions alone may assume a machine's role, for machines of this account and region."
  }
}

run "publisher" {
  command = plan

  assert {
    condition = jsondecode(output.publisher_policy_json) == {
      Version = "2012-10-17"
      Statement = [
        { Effect = "Allow", Action = ["states:StartExecution"], Resource = ["arn:aws:states:eu-west-1:123456789012:stateMachine:muster-broadcast"] },
        { Effect = "Allow", Action = ["states:DescribeExecution"], Resource = ["arn:aws:states:eu-west-1:123456789012:execution:muster-broadcast:*"] },
        { Effect = "Allow", Action = ["states:GetExecutionHistory"], Resource = ["arn:aws:states:eu-west-1:123456789012:execution:muster-broadcast:*"] },
      ]
    }
    error_message = "A publisher starts broadcasts, describes their executions and reads their histories."
  }
}

run "public_keys_need_no_secret" {
  command = plan

  variables {
    jwt = { algorithms = ["RS256", "ES256"], jwks_url = "https://id.example.org/jwks.json" }
  }

  assert {
    condition     = alltrue([for function in module.function : !strcontains(function.policy, "secretsmanager:")])
    error_message = "No function may read a secret."
  }

  assert {
    condition     = length(aws_secretsmanager_secret.jwt) == 0 && output.jwt_secret_arn == null
    error_message = "No secret is created."
  }

  assert {
    condition = alltrue([
      for name in ["connect", "default"] :
      local.functions[name].environment.JWT_JWKS_URL == "https://id.example.org/jwks.json" &&
      !contains(keys(local.functions[name].environment), "JWT_SECRET_ARN")
    ])
    error_message = "connect and default verify with the public keys."
  }
}

run "another_partition" {
  command = plan

  override_data {
    target = data.aws_partition.current
    values = { partition = "aws-us-gov", dns_suffix = "amazonaws.com" }
  }

  assert {
    condition = alltrue([
      for definition in local.state_machine_definitions :
      !strcontains(definition, "arn:aws:states:::") && strcontains(definition, "\"arn:aws-us-gov:states:::lambda:invoke\"")
    ])
    error_message = "A state calls the integrations of the partition that it runs in."
  }
}
