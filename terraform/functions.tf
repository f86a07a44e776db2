locals {
  tables_environment = { for name, table in local.table_names : name => { "${upper(name)}_TABLE" = table } }

  # Time-outs in seconds: the default, which is also the minimum, and the maximum. With less than 10 s, retried calls to
  # AWS would be cut off (functions/shared/clients.py). API Gateway waits 29 s for an answer. A state of ../statemachines
  # waits 3 s longer than the maximum, and the pace of posting relies on deliver's 30 s.
  timeouts = {
    connect    = { default = 10, longest = 29 }
    disconnect = { default = 10, longest = 29 }
    default    = { default = 10, longest = 29 }
    accept     = { default = 10, longest = 12 }
    deliver    = { default = 30, longest = 30 }
    offline    = { default = 30, longest = 30 }
  }

  # The settings of a function in var.functions, or the common ones.
  sizes = {
    for name, timeout in local.timeouts : name => {
      memory_mb            = coalesce(try(var.functions[name].memory_mb, null), var.lambda_memory_mb)
      timeout_seconds      = coalesce(try(var.functions[name].timeout_seconds, null), timeout.default)
      reserved_concurrency = try(var.functions[name].reserved_concurrency, null)
    }
  }

  # The service's name is the dimension of metrics and the annotation of traces, which distinguish deployments.
  telemetry_environment = {
    POWERTOOLS_LOG_LEVEL         = var.log_level
    POWERTOOLS_METRICS_NAMESPACE = local.metrics_namespace
    POWERTOOLS_SERVICE_NAME      = var.name_prefix
  }

  # Each function is functions/<name>.py. `statements` is everything that it may do except logging and tracing.
  functions = {
    connect = {
      description = "Verifies the token and stores the connection."
      environment = merge(
        local.tables_environment.connections,
        local.tables_environment.users,
        local.jwt_environment,
        {
          ALLOWED_ORIGINS        = join(",", var.allowed_origins)
          AUDIENCE_SHARDS        = var.audience_shards
          CONNECTION_TTL_SECONDS = var.connection_ttl_seconds
          ROLES                  = jsonencode(var.roles)
        },
      )
      statements = concat(local.jwt_statements, local.kms_statements.users_table, local.kms_statements.connections_table, [
        { actions = ["dynamodb:GetItem"], resources = [local.table_arns.users] },
        { actions = ["dynamodb:PutItem"], resources = [local.table_arns.connections] },
      ])
    }
    disconnect = {
      description = "Deletes the connection."
      environment = local.tables_environment.connections
      statements = concat(local.kms_statements.connections_table, [
        { actions = ["dynamodb:DeleteItem"], resources = [local.table_arns.connections] },
      ])
    }
    default = {
      description = "Answers a client's message."
      environment = merge(
        local.tables_environment.connections,
        local.tables_environment.messages,
        local.tables_environment.users,
        local.jwt_environment,
        {
          AUDIENCE_SHARDS             = var.audience_shards
          BROADCAST_STATE_MACHINE_ARN = local.state_machine_arns.broadcast
          CONNECTIONS_ENDPOINT        = local.connections_endpoint
          CONNECTION_TTL_SECONDS      = var.connection_ttl_seconds
          ROLES                       = jsonencode(var.roles)
        },
      )
      statements = concat(
        local.jwt_statements,
        local.broadcast_statements,
        local.kms_statements.connections_table,
        local.kms_statements.messages_table,
        local.kms_statements.users_table,
        [
          { actions = ["dynamodb:UpdateItem"], resources = [local.table_arns.connections] },
          { actions = ["dynamodb:GetItem"], resources = [local.table_arns.users] },
          { actions = ["dynamodb:Query"], resources = [local.table_arns.messages] },
          {
            actions   = ["execute-api:ManageConnections"]
            resources = [for method in ["DELETE", "POST"] : "${local.stage_execution_arn}/${method}/@connections/*"]
          },
        ],
      )
    }
    accept = {
      description = "Validates a broadcast and plans its fan-out."
      environment = {
        AUDIENCE_SHARDS           = var.audience_shards
        MESSAGE_RETENTION_SECONDS = local.message_retention_seconds
        ROLES                     = jsonencode(var.roles)
      }
      statements = []
    }
    deliver = {
      description = "Posts a message to a batch of connections."
      environment = {
        CONNECTIONS_ENDPOINT = local.connections_endpoint
        POST_CONCURRENCY     = var.post_concurrency
      }
      statements = [{
        actions   = ["execute-api:ManageConnections"]
        resources = ["${local.stage_execution_arn}/POST/@connections/*"]
      }]
    }
    offline = {
      description = "Hands the users that were not reached over to SNS, and deletes the rows of gone connections."
      environment = merge(
        local.tables_environment.connections,
        local.tables_environment.messages,
        local.tables_environment.users,
        {
          MESSAGE_RETENTION_SECONDS = local.message_retention_seconds
          OFFLINE_TOPIC_ARN         = aws_sns_topic.offline.arn
        },
      )
      statements = concat(
        local.kms_statements.connections_table,
        local.kms_statements.messages_table,
        local.kms_statements.users_table,
        local.kms_statements.offline_topic,
        [
          { actions = ["dynamodb:BatchGetItem"], resources = [local.table_arns.users] },
          { actions = ["dynamodb:DeleteItem"], resources = [local.table_arns.connections] },
          { actions = ["dynamodb:Query"], resources = ["${local.table_arns.connections}/index/UserIndex"] },
          { actions = ["dynamodb:UpdateItem"], resources = [local.table_arns.messages] },
          {
            # PublishBatch requires sns:Publish on AWS, and on MiniStack an action that AWS does not have.
            actions   = concat(["sns:Publish"], var.execute_api_url == null ? [] : ["sns:PublishBatch"])
            resources = [aws_sns_topic.offline.arn]
          },
        ],
      )
    }
  }
}

module "function" {
  source   = "./modules/function"
  for_each = local.functions

  name               = "${var.name_prefix}-${each.key}"
  description        = each.value.description
  handler            = "functions.${each.key}.handler"
  bundle             = local.functions_zip
  layers             = [aws_lambda_layer_version.dependencies.arn]
  runtime            = var.lambda_runtime
  architecture       = var.lambda_architecture
  snap_start         = var.snap_start
  statements         = each.value.statements
  log_retention_days = var.log_retention_days
  kms_key_arn        = var.kms_key_arn
  tags               = var.tags

  memory_mb            = local.sizes[each.key].memory_mb
  timeout_seconds      = local.sizes[each.key].timeout_seconds
  reserved_concurrency = local.sizes[each.key].reserved_concurrency

  account_id               = data.aws_caller_identity.current.account_id
  permissions_boundary_arn = var.permissions_boundary_arn

  environment = merge(each.value.environment, local.telemetry_environment)
}
