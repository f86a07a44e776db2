# With a customer managed key, a role that uses a resource also needs its key: only for that resource and, where AWS sets
# the condition, only through that resource's service.
locals {
  # KMS actions on the key of each kind of resource, and their conditions.
  kms_uses = merge(
    {
      # Both reads and writes decrypt the table's own key.
      for name, table in local.table_names : "${name}_table" => {
        key     = local.table_kms_key_arns[name]
        actions = ["kms:Decrypt"]
        service = "dynamodb"
        context = { "aws:dynamodb:tableName" = table }
      }
    },
    {
      # The definition of a state machine and the data of its executions.
      for name, arn in local.state_machine_arns : "${name}_machine" => {
        key     = var.kms_key_arn
        actions = ["kms:Decrypt", "kms:GenerateDataKey"]
        service = null
        context = { "aws:states:stateMachineArn" = arn }
      }
    },
    {
      # To read an execution's output: DescribeExecution, and StartSyncExecution of an Express workflow.
      for name, arn in local.state_machine_arns : "${name}_execution" => {
        key     = var.kms_key_arn
        actions = ["kms:Decrypt"]
        service = null
        context = { "aws:states:stateMachineArn" = arn }
      }
    },
    {
      # The logs of an encrypted state machine. The asterisk is part of the context.
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

  # The same as IAM statements of functions and state machines. None if AWS manages the key.
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

  # What AWS services do with the key themselves, so that only the key policy can allow it. Built only from names, because
  # the key is created before the resources that it encrypts.
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
