locals {
  # The action supports no resource; only its namespace can be restricted.
  metrics_statement = {
    actions    = ["cloudwatch:PutMetricData"]
    resources  = ["*"]
    conditions = { StringEquals = { "cloudwatch:namespace" = [local.metrics_namespace] } }
  }

  # What Step Functions requires to deliver logs and traces. None of it can be restricted to a resource.
  state_machine_telemetry = {
    actions = [
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
    resources = ["*"]
  }
}

resource "aws_iam_role" "state_machine" {
  for_each = local.state_machines

  name_prefix = "${var.name_prefix}-${each.key}-"
  description = "State machine ${var.name_prefix}-${each.key}"

  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "states.amazonaws.com" }
      Action    = "sts:AssumeRole"
      # As AWS documents it [Creating an IAM role for your state machine]. Passing the role to another state machine of
      # the account requires iam:PassRole on it.
      Condition = {
        ArnLike      = { "aws:SourceArn" = "arn:${data.aws_partition.current.partition}:states:${local.arn_scope}:stateMachine:*" }
        StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id }
      }
    }]
  })
}

resource "aws_iam_role_policy" "state_machine" {
  for_each = local.state_machines

  name = "permissions"
  role = aws_iam_role.state_machine[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in each.value.statements : merge(
        { Effect = "Allow", Action = statement.actions, Resource = statement.resources },
        { for condition in [try(statement.conditions, null)] : "Condition" => condition if condition != null },
      )
    ]
  })
}

# What Step Functions checks when a state machine is created. Separate from the other policy, which names functions: this
# one is created before them, so that IAM has spread it in time. The provider does not retry a KmsAccessDeniedException.
resource "aws_iam_role_policy" "state_machine_telemetry" {
  for_each = local.state_machines

  name = "telemetry"
  role = aws_iam_role.state_machine[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in concat(local.kms_statements["${each.key}_machine"], local.kms_statements.log_delivery, [local.state_machine_telemetry]) : merge(
        { Effect = "Allow", Action = statement.actions, Resource = statement.resources },
        { for condition in [try(statement.conditions, null)] : "Condition" => condition if condition != null },
      )
    ]
  })
}
