locals {
  # X-Ray's actions do not support resource-level permissions.
  telemetry = [
    { actions = ["logs:CreateLogStream", "logs:PutLogEvents"], resources = ["${aws_cloudwatch_log_group.this.arn}:*"] },
    { actions = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], resources = ["*"] },
  ]
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}

resource "aws_iam_role" "this" {
  name_prefix          = "${var.name}-"
  description          = "Function ${var.name}"
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "lambda.amazonaws.com" }
      Action    = "sts:AssumeRole"
      # AWS documents aws:SourceAccount for Step Functions, but for Lambda only shows it in samples. A call by Lambda without
      # it is therefore allowed, or else every function could stop. Roles cannot be passed across accounts anyway.
      Condition = { StringEqualsIfExists = { "aws:SourceAccount" = var.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  name = "permissions"
  role = aws_iam_role.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in concat(var.statements, local.telemetry) : merge(
        { Effect = "Allow", Action = statement.actions, Resource = statement.resources },
        { for condition in [try(statement.conditions, null)] : "Condition" => condition if condition != null },
      )
    ]
  })
}

resource "aws_lambda_function" "this" {
  function_name    = var.name
  description      = var.description
  role             = aws_iam_role.this.arn
  handler          = var.handler
  filename         = var.bundle
  source_code_hash = fileexists(var.bundle) ? filebase64sha256(var.bundle) : null
  layers           = var.layers
  runtime          = var.runtime
  architectures    = [var.architecture]
  memory_size      = var.memory_mb
  timeout          = var.timeout_seconds
  kms_key_arn      = var.kms_key_arn
  publish          = var.snap_start
  tags             = var.tags

  reserved_concurrent_executions = var.reserved_concurrency

  environment {
    variables = var.environment
  }

  dynamic "snap_start" {
    for_each = var.snap_start ? [true] : []

    content {
      apply_on = "PublishedVersions"
    }
  }

  tracing_config {
    mode = "Active"
  }

  lifecycle {
    precondition {
      condition     = length(jsonencode(var.environment)) <= 4096
      error_message = "The environment of ${var.name} is larger than Lambda's limit of 4 KB: shorten names, roles, allowed origins or the values in jwt."
    }
  }

  # Created before the function: Lambda itself would create a log group without retention at the first invocation.
  depends_on = [aws_cloudwatch_log_group.this, aws_iam_role_policy.this]
}

# Only published versions have snapshots. Callers use the alias, so that they need not know the version number.
resource "aws_lambda_alias" "live" {
  count = var.snap_start ? 1 : 0

  name             = "live"
  description      = "The latest deployed version."
  function_name    = aws_lambda_function.this.function_name
  function_version = aws_lambda_function.this.version
}
