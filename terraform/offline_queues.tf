locals {
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

  sqs_longest_retention_seconds = 14 * 86400
}

# Subscribed from the start, so that no notification is lost while there is no other subscriber.
# Every queue is encrypted with kms_key_arn or, without it, with SQS's own key: SNS may not use the AWS managed aws/sqs.
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

# Messages that a consumer received five times without deleting them.
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

# What the topic could not deliver to a subscriber. Separate, because SQS can move messages back only to a queue.
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
