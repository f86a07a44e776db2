# Functions: what each is told by its environment, and what modules/function makes of one.

# Not mock_provider: Terraform cannot mock an ephemeral resource. The real one plans offline once it need not ask who
# calls, nor for a password (hence a secret_arn below).
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

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  jwt             = { secret_arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" }
}

run "environment" {
  command = plan

  assert {
    condition = { for name, function in local.functions : name => join(" ", keys(function.environment)) } == {
      accept     = "AUDIENCE_SHARDS MESSAGE_RETENTION_SECONDS ROLES"
      connect    = "ALLOWED_ORIGINS AUDIENCE_SHARDS CONNECTIONS_TABLE CONNECTION_TTL_SECONDS JWT_ALGORITHMS JWT_AUDIENCE JWT_ISSUER JWT_SECRET_ARN USERS_TABLE"
      default    = "BROADCAST_STATE_MACHINE_ARN CONNECTIONS_ENDPOINT CONNECTIONS_TABLE CONNECTION_TTL_SECONDS JWT_ALGORITHMS JWT_AUDIENCE JWT_ISSUER JWT_SECRET_ARN MESSAGES_TABLE ROLES USERS_TABLE"
      deliver    = "CONNECTIONS_ENDPOINT CONNECTIONS_TABLE POST_CONCURRENCY"
      disconnect = "CONNECTIONS_TABLE"
      offline    = "CONNECTIONS_TABLE MESSAGES_TABLE MESSAGE_RETENTION_SECONDS OFFLINE_TOPIC_ARN USERS_TABLE"
    }
    error_message = "Each function is told what it needs, and no more."
  }

  assert {
    condition = jsondecode(local.functions.default.environment.ROLES) == {
      admin            = { actions = ["alert", "broadcast", "shelter_update"], own_shelter_only = false }
      coordinator      = { actions = ["alert", "broadcast", "shelter_update"], own_shelter_only = false }
      shelter_operator = { actions = ["shelter_update"], own_shelter_only = true }
      first_responder  = { actions = ["alert"], own_shelter_only = false }
      resident         = { actions = [], own_shelter_only = false }
    }
    error_message = "Which role may send which action is data."
  }

  assert {
    condition     = local.functions.offline.environment.MESSAGE_RETENTION_SECONDS == 604800
    error_message = "Days become seconds."
  }

  assert {
    condition     = { for name, function in module.function : name => function.name } == { for name in keys(local.functions) : name => "muster-${name}" }
    error_message = "Functions are named after their files."
  }
}

run "function_module" {
  command = plan

  module {
    source = "./modules/function"
  }

  variables {
    name               = "muster-any"
    description        = "Any function."
    handler            = "functions.any.handler"
    bundle             = "./tests/bundle/functions.zip"
    layers             = []
    runtime            = "python3.13"
    architecture       = "arm64"
    memory_mb          = 512
    timeout_seconds    = 10
    environment        = { ANY = "thing" }
    statements         = []
    log_retention_days = 30
    tags               = { team = "any" }
  }

  assert {
    condition     = aws_lambda_function.this.tracing_config[0].mode == "Active"
    error_message = "Every function is traced."
  }

  assert {
    condition     = aws_lambda_function.this.source_code_hash == filebase64sha256("./tests/bundle/functions.zip")
    error_message = "New code is deployed."
  }

  assert {
    condition     = aws_cloudwatch_log_group.this.name == "/aws/lambda/muster-any" && aws_cloudwatch_log_group.this.retention_in_days == 30
    error_message = "The function has a log group of its own, whose events expire."
  }

  assert {
    condition     = jsondecode(aws_iam_role.this.assume_role_policy).Statement[0].Principal == { Service = "lambda.amazonaws.com" }
    error_message = "Lambda alone may assume the function's role."
  }

  assert {
    condition     = alltrue([for tags in [aws_lambda_function.this.tags, aws_iam_role.this.tags, aws_cloudwatch_log_group.this.tags] : tags == tomap({ team = "any" })])
    error_message = "Everything is tagged."
  }
}

run "no_bundle" {
  command = plan

  variables {
    bundle_dir = "./tests/nowhere"
  }

  expect_failures = [aws_lambda_layer_version.dependencies]
}
