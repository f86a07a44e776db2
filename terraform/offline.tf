locals {
  # Built from names, because the policies of the queues and of the key are created first.
  offline_topic_arn = "arn:${data.aws_partition.current.partition}:sns:${local.arn_scope}:${var.name_prefix}-offline"

  # The form of each protocol's endpoint. The version $LATEST of a function allows no permission [Lambda AddPermission].
  subscriber_endpoints = {
    email    = "^[^@\\s]+@[^@\\s]+$"
    firehose = "^arn:[a-z-]+:firehose:[a-z0-9-]+:\\d{12}:deliverystream/[A-Za-z0-9_.-]+$"
    https    = "^https://[^/\\s]+(/\\S*)?$"
    lambda   = "^arn:[a-z-]+:lambda:[a-z0-9-]+:\\d{12}:function:[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)?$"
    sms      = "^\\+[1-9]\\d{6,14}$" # E.164
    sqs      = "^arn:[a-z-]+:sqs:[a-z0-9-]+:\\d{12}:[A-Za-z0-9_-]+$"
  }

  # Denies plain HTTP, and allows nothing. The condition never matches at an endpoint other than AWS, which may have
  # no TLS.
  deny_plain_http = {
    Sid       = "DenyPlainHttp"
    Effect    = "Deny"
    Principal = "*"
    Condition = { Bool = { "aws:SecureTransport" = var.execute_api_url == null ? "false" : "never" } }
  }
}

# The fallback of every broadcast: users who were not reached are published here, for SMS, push or mail subscribers.
# Without kms_key_arn it uses the AWS managed key: every role of the account that may publish may use it. SNS decrypts
# before it delivers, so queues with any encryption can subscribe.
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

  # A notification that is published before SNS may invoke the function would become undeliverable.
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
