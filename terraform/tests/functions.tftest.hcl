# Functions: the environment of each, and what modules/function creates for one.

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

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  jwt             = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
}

run "environment" {
  command = plan

  assert {
    condition = { for name, function in local.functions : name => join(" ", keys(function.environment)) } == {
      accept     = "AUDIENCE_SHARDS MESSAGE_RETENTION_SECONDS ROLES"
      connect    = "ALLOWED_ORIGINS AUDIENCE_SHARDS CONNECTIONS_TABLE CONNECTION_TTL_SECONDS JWT_ALGORITHMS JWT_AUDIENCE JWT_ISSUER JWT_SECRET_ARN ROLES USERS_TABLE"
      default    = "AUDIENCE_SHARDS BROADCAST_STATE_MACHINE_ARN CONNECTIONS_ENDPOINT CONNECTIONS_TABLE CONNECTION_TTL_SECONDS JWT_ALGORITHMS JWT_AUDIENCE JWT_ISSUER JWT_SECRET_ARN MESSAGES_TABLE ROLES USERS_TABLE"
      deliver    = "CONNECTIONS_ENDPOINT POST_CONCURRENCY"
      disconnect = "CONNECTIONS_TABLE"
      offline    = "CONNECTIONS_TABLE MESSAGES_TABLE MESSAGE_RETENTION_SECONDS OFFLINE_TOPIC_ARN USERS_TABLE"
    }
    error_message = "The environment of each function contains what it needs, and no more."
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
    name                 = "muster-any"
    description          = "Any function."
    handler              = "functions.any.handler"
    bundle               = "./tests/bundle/functions.zip"
    layers               = []
    runtime              = "python3.13"
    architecture         = "arm64"
    memory_mb            = 512
    timeout_seconds      = 10
    reserved_concurrency = null
    snap_start           = false
    environment          = { ANY = "thing" }
    statements           = []
    log_retention_days   = 30
    tags                 = { team = "any" }

    account_id               = "123456789012"
    permissions_boundary_arn = "arn:aws:iam::123456789012:policy/boundary"
    kms_key_arn              = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition     = aws_iam_role.this.permissions_boundary == "arn:aws:iam::123456789012:policy/boundary"
    error_message = "The boundary holds every function's role."
  }

  assert {
    condition = alltrue([
      for key in [aws_lambda_function.this.kms_key_arn, aws_cloudwatch_log_group.this.kms_key_id] :
      key == "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    ])
    error_message = "The key encrypts the environment and the logs."
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
    condition = jsondecode(aws_iam_role.this.assume_role_policy).Statement == [{
      Effect    = "Allow"
      Principal = { Service = "lambda.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEqualsIfExists = { "aws:SourceAccount" = "123456789012" } }
    }]
    error_message = "Lambda alone may assume the function's role, for no other account."
  }

  assert {
    condition     = alltrue([for tags in [aws_lambda_function.this.tags, aws_iam_role.this.tags, aws_cloudwatch_log_group.this.tags] : tags == tomap({ team = "any" })])
    error_message = "Everything is tagged."
  }
}

run "a_larger_environment_than_lambda_takes" {
  command = plan

  module {
    source = "./modules/function"
  }

  variables {
    name                     = "muster-any"
    description              = "Any function."
    handler                  = "functions.any.handler"
    bundle                   = "./tests/bundle/functions.zip"
    layers                   = []
    runtime                  = "python3.13"
    architecture             = "arm64"
    memory_mb                = 512
    timeout_seconds          = 10
    reserved_concurrency     = null
    snap_start               = false
    environment              = { ANY = join("", [for number in range(1024) : "\"\""]) } # quotes count twice
    statements               = []
    log_retention_days       = 30
    tags                     = {}
    account_id               = "123456789012"
    permissions_boundary_arn = null
    kms_key_arn              = null
  }

  expect_failures = [aws_lambda_function.this]
}

run "without_snap_start" {
  command = plan

  assert {
    condition     = alltrue([for function in module.function : function.alias == null]) && alltrue([for permission in aws_lambda_permission.route : permission.qualifier == null])
    error_message = "There is no alias; callers invoke the functions themselves."
  }

  assert {
    condition     = local.timeouts.deliver.default == 30 && local.timeouts.connect.default == 10
    error_message = "deliver has the time that post_rate counts on."
  }
}

run "snap_start" {
  command = plan

  module {
    source = "./modules/function"
  }

  variables {
    name                 = "muster-any"
    description          = "Any function."
    handler              = "functions.any.handler"
    bundle               = "./tests/bundle/functions.zip"
    layers               = []
    runtime              = "python3.13"
    architecture         = "arm64"
    memory_mb            = 512
    timeout_seconds      = 10
    reserved_concurrency = 7
    snap_start           = true
    environment          = { ANY = "thing" }
    statements           = []
    log_retention_days   = 30
    tags                 = {}

    account_id               = "123456789012"
    permissions_boundary_arn = null
    kms_key_arn              = null
  }

  override_resource {
    target          = aws_lambda_alias.live
    override_during = plan
    values = {
      arn        = "arn:aws:lambda:eu-west-1:123456789012:function:muster-any:live"
      invoke_arn = "arn:aws:apigateway:eu-west-1:lambda:path/2015-03-31/functions/arn:aws:lambda:eu-west-1:123456789012:function:muster-any:live/invocations"
    }
  }

  assert {
    condition     = aws_lambda_function.this.publish && aws_lambda_function.this.snap_start[0].apply_on == "PublishedVersions"
    error_message = "Each change publishes a version with a snapshot."
  }

  assert {
    condition     = aws_lambda_alias.live[0].name == "live" && output.alias == "live"
    error_message = "An alias names the version that was published last."
  }

  assert {
    condition     = output.arn == aws_lambda_alias.live[0].arn && output.invoke_arn == aws_lambda_alias.live[0].invoke_arn
    error_message = "Callers invoke the alias: the function itself has no snapshot."
  }

  assert {
    condition     = aws_lambda_function.this.reserved_concurrent_executions == 7
    error_message = "Concurrency is reserved as asked for."
  }
}

run "snap_start_everywhere" {
  command = plan

  variables {
    snap_start = true
  }

  override_resource {
    target          = module.function["connect"].aws_lambda_alias.live
    override_during = plan
    values          = { invoke_arn = "invoke-connect-live" }
  }

  override_resource {
    target          = module.function["accept"].aws_lambda_alias.live
    override_during = plan
    values          = { arn = "arn:aws:lambda:eu-west-1:123456789012:function:muster-accept:live" }
  }

  assert {
    condition     = alltrue([for permission in aws_lambda_permission.route : permission.qualifier == "live"])
    error_message = "API Gateway may invoke the aliases."
  }

  assert {
    condition     = aws_apigatewayv2_integration.this["$connect"].integration_uri == "invoke-connect-live"
    error_message = "API Gateway invokes the aliases."
  }

  assert {
    condition = (
      local.state_machines.broadcast.variables.accept_arn == "arn:aws:lambda:eu-west-1:123456789012:function:muster-accept:live" &&
      contains(flatten([for statement in local.state_machines.broadcast.statements : statement.resources]), "arn:aws:lambda:eu-west-1:123456789012:function:muster-accept:live")
    )
    error_message = "The state machines invoke the aliases, and may."
  }
}

run "functions_that_differ" {
  command = plan

  variables {
    lambda_memory_mb = 256
    functions = {
      connect = { timeout_seconds = 29 }
      accept  = { timeout_seconds = 12 }
      deliver = { memory_mb = 1769, reserved_concurrency = 20 }
      offline = { reserved_concurrency = 10 }
    }
  }

  assert {
    condition     = { for name, size in local.sizes : name => "${size.memory_mb} MB ${size.timeout_seconds} s ${coalesce(size.reserved_concurrency, "shared")}" } == { accept = "256 MB 12 s shared", connect = "256 MB 29 s shared", default = "256 MB 10 s shared", deliver = "1769 MB 30 s 20", disconnect = "256 MB 10 s shared", offline = "256 MB 30 s 10" }
    error_message = "A function differs in what is given for it, and in nothing else."
  }
}

run "state_timeouts" {
  command = plan

  assert {
    condition = alltrue([
      for name, waits in {
        accept  = jsondecode(file("../statemachines/broadcast.asl.json")).States.Accept.TimeoutSeconds
        deliver = jsondecode(file("../statemachines/fanout.asl.json")).States.Deliver.ItemProcessor.States.DeliverBatch.TimeoutSeconds
        offline = jsondecode(file("../statemachines/fanout.asl.json")).States.Offline.TimeoutSeconds
      } : waits == local.timeouts[name].longest + 3
    ])
    error_message = "A state waits 3 s longer than its function may take: the function's own end comes first."
  }
}

run "no_bundle" {
  command = plan

  variables {
    bundle_dir = "./tests/nowhere"
  }

  expect_failures = [aws_lambda_layer_version.dependencies]
}

run "bundle_of_two_builds" {
  command = plan

  variables {
    bundle_dir = "./tests/mixed-bundle"
  }

  expect_failures = [aws_lambda_layer_version.dependencies]
}

run "bundle_for_another_runtime" {
  command = plan

  variables {
    lambda_runtime = "python3.12"
  }

  expect_failures = [aws_lambda_layer_version.dependencies]
}

run "bundle_for_another_architecture" {
  command = plan

  variables {
    lambda_architecture = "x86_64"
  }

  expect_failures = [aws_lambda_layer_version.dependencies]
}
