# With a customer managed key, whoever uses a thing must be allowed to use its key as well: for that thing only and,
# where AWS sets the condition, through that thing's service only.
locals {
  # What is done with the key of each thing, and the conditions under which it is.
  kms_uses = merge(
    {
      # Reads and writes alike decrypt a table's own key.
      for name, table in local.table_names : "${name}_table" => {
        key     = local.table_kms_key_arns[name]
        actions = ["kms:Decrypt"]
        service = "dynamodb"
        context = { "aws:dynamodb:tableName" = table }
      }
    },
    {
      # A machine's definition and the data of its executions.
      for name, arn in local.state_machine_arns : "${name}_machine" => {
        key     = var.kms_key_arn
        actions = ["kms:Decrypt", "kms:GenerateDataKey"]
        service = null
        context = { "aws:states:stateMachineArn" = arn }
      }
    },
    {
      # For those that see an execution's output: DescribeExecution, and StartSyncExecution on an Express machine.
      for name, arn in local.state_machine_arns : "${name}_execution" => {
        key     = var.kms_key_arn
        actions = ["kms:Decrypt"]
        service = null
        context = { "aws:states:stateMachineArn" = arn }
      }
    },
    {
      # The logs of an encrypted machine; the asterisk is part of the context.
      log_delivery = {
        key     = var.kms_key_arn
        actions = ["kms:GenerateDataKey"]
        service = null
        context = { SourceArn = local.log_delivery_arn }
      }
      offline_topic = {
        key     = var.kms_key_arn
        actions = ["kms:Decrypt", "kms:GenerateDataKey"]
        service = "sns"
        context = { "aws:sns:topicArn" = aws_sns_topic.offline.arn }
      }
      jwt_secret = {
        key     = local.jwt_creates_secret ? var.kms_key_arn : try(var.jwt.secret.kms_key_arn, null)
        actions = ["kms:Decrypt"]
        service = "secretsmanager"
        context = { SecretARN = local.jwt_secret_arn }
      }
    },
  )

  # The same as `statements` of functions and machines: none where AWS manages the key.
  kms_statements = {
    for name, use in local.kms_uses : name => [
      for key in [use.key] : {
        actions   = use.actions
        resources = [key]
        conditions = {
          StringEquals = merge(
            { for key, value in use.context : "kms:EncryptionContext:${key}" => [value] },
            { for service in compact([use.service]) : "kms:ViaService" => ["${service}.${local.region}.${data.aws_partition.current.dns_suffix}"] },
          )
        }
      } if key != null
    ]
  }

  # What services do with the key on their own account, so that only its policy can allow it. Built from names alone,
  # since the key comes before all that it encrypts.
  kms_key_policy = {
    Version = "2012-10-17"
    Statement = [
      {
        Effect    = "Allow"
        Principal = { Service = "logs.${local.region}.amazonaws.com" }
        Action    = ["kms:Decrypt", "kms:Describe*", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
        Resource  = "*"
        Condition = { ArnLike = { "kms:EncryptionContext:aws:logs:arn" = [
          for name in ["/aws/apigateway/${var.name_prefix}", "/aws/lambda/${var.name_prefix}-*", "/aws/vendedlogs/states/${var.name_prefix}-*"] :
          "arn:${data.aws_partition.current.partition}:logs:${local.arn_scope}:log-group:${name}"
        ] } }
      },
      {
        Effect    = "Allow"
        Principal = { Service = "delivery.logs.amazonaws.com" }
        Action    = ["kms:Decrypt"]
        Resource  = "*"
        Condition = { StringEquals = { "kms:EncryptionContext:SourceArn" = local.log_delivery_arn } }
      },
      {
        Effect    = "Allow"
        Principal = { Service = "sns.amazonaws.com" }
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = "*"
        Condition = { ArnEquals = { "aws:SourceArn" = local.offline_topic_arn } }
      },
    ]
  }

  log_delivery_arn = "arn:${data.aws_partition.current.partition}:logs:${local.arn_scope}:*"
}
