locals {
  # Each machine is statemachines/<name>.asl.json, whose template variables are `variables`.
  state_machines = {
    broadcast = {
      type = "STANDARD"
      variables = {
        accept_arn            = module.function["accept"].arn
        fanout_arn            = local.state_machine_arns.fanout
        messages_table        = local.table_names.messages
        topic_arn             = aws_sns_topic.offline.arn
        metrics_namespace     = local.metrics_namespace
        service               = var.name_prefix
        partition_concurrency = var.partition_concurrency
        post_burst            = local.post_burst
        post_rate             = local.post_rate
      }
      statements = concat(
        local.kms_statements.fanout_execution,
        local.kms_statements.messages_table,
        local.kms_statements.offline_topic,
        [
          { actions = ["lambda:InvokeFunction"], resources = [module.function["accept"].arn] },
          { actions = ["dynamodb:PutItem"], resources = [local.table_arns.messages] },
          { actions = ["states:StartSyncExecution"], resources = [local.state_machine_arns.fanout] },
          { actions = ["sns:Publish"], resources = [aws_sns_topic.offline.arn] },
          local.metrics_statement,
        ],
      )
    }
    fanout = {
      type = "EXPRESS"
      variables = {
        deliver_arn       = module.function["deliver"].arn
        offline_arn       = module.function["offline"].arn
        connections_table = local.table_names.connections
        topic_arn         = aws_sns_topic.offline.arn
        metrics_namespace = local.metrics_namespace
        service           = var.name_prefix
        page_size         = var.page_size
        batch_size        = var.batch_size
        batch_concurrency = var.batch_concurrency
      }
      statements = concat(
        local.kms_statements.connections_table,
        local.kms_statements.offline_topic,
        [
          {
            actions   = ["dynamodb:Query"]
            resources = [for index in keys(local.tables.connections.indexes) : "${local.table_arns.connections}/index/${index}"]
          },
          { actions = ["lambda:InvokeFunction"], resources = [module.function["deliver"].arn, module.function["offline"].arn] },
          { actions = ["sns:Publish"], resources = [aws_sns_topic.offline.arn] },
          local.metrics_statement,
        ],
      )
    }
  }

  state_machine_arns = {
    for name in ["broadcast", "fanout"] :
    name => "arn:${data.aws_partition.current.partition}:states:${local.arn_scope}:stateMachine:${var.name_prefix}-${name}"
  }

  # Decoded and encoded again, so that invalid JSON fails the plan. ARNs of integrations must be of the own partition.
  state_machine_definitions = {
    for name, machine in local.state_machines : name => jsonencode(jsondecode(replace(
      templatefile("${path.module}/../statemachines/${name}.asl.json", machine.variables),
      "\"arn:aws:states:::",
      "\"arn:${data.aws_partition.current.partition}:states:::",
    )))
  }
}

resource "aws_sfn_state_machine" "this" {
  for_each = local.state_machines

  name       = "${var.name_prefix}-${each.key}"
  type       = each.value.type
  role_arn   = aws_iam_role.state_machine[each.key].arn
  definition = local.state_machine_definitions[each.key]
  tags       = var.tags

  # MiniStack drops this setting, which would be a change in every plan. Only AWS has X-Ray.
  dynamic "tracing_configuration" {
    for_each = var.execute_api_url == null ? [true] : []

    content {
      enabled = tracing_configuration.value
    }
  }

  encryption_configuration {
    type       = var.kms_key_arn == null ? "AWS_OWNED_KEY" : "CUSTOMER_MANAGED_KMS_KEY"
    kms_key_id = var.kms_key_arn

    # AWS's default, which would otherwise be a change in every plan.
    kms_data_key_reuse_period_seconds = var.kms_key_arn == null ? null : 300
  }

  # Without execution data, so that payloads never reach a log.
  logging_configuration {
    level                  = "ERROR"
    include_execution_data = false
    log_destination        = "${aws_cloudwatch_log_group.state_machine[each.key].arn}:*"
  }

  # Step Functions rejects a state machine whose role may not deliver its logs.
  depends_on = [aws_iam_role_policy.state_machine, aws_iam_role_policy.state_machine_telemetry]
}

# Log groups under /aws/vendedlogs/ do not count against the size of the account's log resource policy.
resource "aws_cloudwatch_log_group" "state_machine" {
  for_each = local.state_machines

  name              = "/aws/vendedlogs/states/${var.name_prefix}-${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}
