locals {
  # Built from names: the queues' policies and the key's policy speak of what does not exist yet.
  offline_topic_arn = "arn:${data.aws_partition.current.partition}:sns:${local.arn_scope}:${var.name_prefix}-offline"
  offline_queue_names = {
    queue         = "${var.name_prefix}-offline"
    dead_letters  = "${var.name_prefix}-offline-dlq"
    undeliverable = "${var.name_prefix}-offline-undeliverable"
  }
  offline_queue_arns = {
    for key, name in local.offline_queue_names :
    key => "arn:${data.aws_partition.current.partition}:sqs:${local.arn_scope}:${name}"
  }

  offline_queue_policies = {
    for key, arn in local.offline_queue_arns : key => jsonencode({
      Version = "2012-10-17"
      Statement = concat(
        [merge(local.deny_plain_http, { Action = "sqs:*", Resource = arn })],
        key == "dead_letters" ? [] : [{
          Sid       = "AllowTopic"
          Effect    = "Allow"
          Principal = { Service = "sns.amazonaws.com" }
          Action    = "sqs:SendMessage"
          Resource  = arn
          Condition = { ArnEquals = { "aws:SourceArn" = aws_sns_topic.offline.arn } }
        }],
      )
    })
  }

  # What each protocol takes as its endpoint. A function's version $LATEST takes no permission [Lambda AddPermission].
  subscriber_endpoints = {
    email    = "^[^@\\s]+@[^@\\s]+$"
    firehose = "^arn:[a-z-]+:firehose:[a-z0-9-]+:\\d{12}:deliverystream/[A-Za-z0-9_.-]+$"
    https    = "^https://[^/\\s]+(/\\S*)?$"
    lambda   = "^arn:[a-z-]+:lambda:[a-z0-9-]+:\\d{12}:function:[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)?$"
    sms      = "^\\+[1-9]\\d{6,14}$" # E.164
    sqs      = "^arn:[a-z-]+:sqs:[a-z0-9-]+:\\d{12}:[A-Za-z0-9_-]+$"
  }

  sqs_longest_retention_seconds = 14 * 86400
}

# The floor under every broadcast: whoever could not be reached is published here, for SMS, push or mail subscribers.
# Without a key of yours the AWS managed one: every role of the account that may publish may use it, and SNS decrypts
# before it delivers, so that queues of any encryption can subscribe.
resource "aws_sns_topic" "offline" {
  name              = "${var.name_prefix}-offline"
  kms_master_key_id = coalesce(var.kms_key_arn, "alias/aws/sns")
  tags              = var.tags
}

resource "aws_sns_topic_policy" "offline" {
  arn = aws_sns_topic.offline.arn
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [merge(local.deny_plain_http, { Action = "sns:Publish", Resource = aws_sns_topic.offline.arn })]
  })
}

# Subscribed from the start, so that nothing published is lost while nobody else subscribes.
# Every queue is encrypted by the key or, without one, by SQS's own: SNS may not use the AWS managed key aws/sqs.
resource "aws_sqs_queue" "offline" {
  name                       = local.offline_queue_names.queue
  message_retention_seconds  = min(local.message_retention_seconds, local.sqs_longest_retention_seconds)
  visibility_timeout_seconds = 60
  receive_wait_time_seconds  = 20
  kms_master_key_id          = var.kms_key_arn
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  policy                     = local.offline_queue_policies.queue
  tags                       = var.tags

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.offline_dead_letters.arn
    maxReceiveCount     = 5
  })
}

# What a consumer received five times without deleting it.
resource "aws_sqs_queue" "offline_dead_letters" {
  name                      = local.offline_queue_names.dead_letters
  message_retention_seconds = local.sqs_longest_retention_seconds
  kms_master_key_id         = var.kms_key_arn
  sqs_managed_sse_enabled   = var.kms_key_arn == null ? true : null
  policy                    = local.offline_queue_policies.dead_letters
  tags                      = var.tags

  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [local.offline_queue_arns.queue]
  })
}

# What the topic could not deliver to a subscriber. Apart from the other, because SQS can only move messages back to a queue.
resource "aws_sqs_queue" "offline_undeliverable" {
  name                      = local.offline_queue_names.undeliverable
  message_retention_seconds = local.sqs_longest_retention_seconds
  kms_master_key_id         = var.kms_key_arn
  sqs_managed_sse_enabled   = var.kms_key_arn == null ? true : null
  policy                    = local.offline_queue_policies.undeliverable
  tags                      = var.tags
}

resource "aws_sns_topic_subscription" "offline" {
  topic_arn            = aws_sns_topic.offline.arn
  protocol             = "sqs"
  endpoint             = aws_sqs_queue.offline.arn
  raw_message_delivery = false

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.offline_undeliverable.arn
  })
}

resource "aws_sns_topic_subscription" "subscriber" {
  for_each = var.offline_subscribers

  topic_arn             = aws_sns_topic.offline.arn
  protocol              = each.value.protocol
  endpoint              = each.value.endpoint
  filter_policy         = each.value.filter_policy
  filter_policy_scope   = each.value.filter_policy == null ? null : each.value.filter_policy_scope
  raw_message_delivery  = each.value.raw_message_delivery
  subscription_role_arn = each.value.subscription_role_arn

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.offline_undeliverable.arn
  })

  # What is published before SNS may invoke a function would go to the undeliverable.
  depends_on = [aws_lambda_permission.subscriber]
}

resource "aws_lambda_permission" "subscriber" {
  for_each = { for name, subscriber in var.offline_subscribers : name => subscriber.endpoint if subscriber.protocol == "lambda" }

  statement_id  = "${var.name_prefix}-offline-${each.key}"
  action        = "lambda:InvokeFunction"
  function_name = join(":", slice(split(":", each.value), 0, 7))
  qualifier     = try(split(":", each.value)[7], null)
  principal     = "sns.amazonaws.com"
  source_arn    = aws_sns_topic.offline.arn
}
