variable "offline_subscribers" {
  description = <<-EOT
    Further subscribers to notifications about users who were not reached, by a name of your choice. A notification has
    the form of schemas/offline-notification.schema.json; subscribe a function to turn it into a text for people.
    filter_policy is SNS's, as JSON, over the attributes type, reason, role, shelterId and userId or, with
    filter_policy_scope MessageBody, over the notification. raw_message_delivery omits SNS's envelope. The SQS queue
    offline-undeliverable keeps what cannot be delivered. E-mail addresses and https endpoints must confirm. An SQS
    queue's policy must allow the topic to send. A function must be in this account and region.
  EOT
  type = map(object({
    protocol              = string
    endpoint              = string
    filter_policy         = optional(string)
    filter_policy_scope   = optional(string, "MessageAttributes")
    raw_message_delivery  = optional(bool, false)
    subscription_role_arn = optional(string)
  }))
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for name, subscriber in var.offline_subscribers : can(regex("^[A-Za-z0-9_-]{1,64}$", name)) && subscriber != null])
    error_message = "offline_subscribers: a name must be 1 to 64 letters, digits, hyphens and underscores, and have a protocol and an endpoint."
  }

  validation {
    condition     = alltrue([for subscriber in var.offline_subscribers : try(contains(keys(local.subscriber_endpoints), subscriber.protocol), false)])
    error_message = "offline_subscribers: protocol must be ${join(", ", keys(local.subscriber_endpoints))}."
  }

  validation {
    condition = alltrue([
      for subscriber in var.offline_subscribers :
      can(regex(lookup(local.subscriber_endpoints, subscriber.protocol, ""), subscriber.endpoint))
    ])
    error_message = "offline_subscribers: endpoint must be the whole ARN of a firehose delivery stream, lambda function or sqs standard queue, an email address, an https:// address, or for sms a number like +15551230000."
  }

  # The permission is created here.
  validation {
    condition     = alltrue([for subscriber in var.offline_subscribers : try(subscriber.protocol != "lambda" || strcontains(subscriber.endpoint, ":lambda:${local.arn_scope}:"), true)])
    error_message = "offline_subscribers: a lambda function must be in this region and account, ${local.arn_scope}."
  }

  validation {
    condition     = alltrue([for subscriber in var.offline_subscribers : try(subscriber.filter_policy, null) == null || can(keys(jsondecode(subscriber.filter_policy)))])
    error_message = "offline_subscribers: filter_policy must be a JSON object, for example jsonencode({ type = [\"alert\"] })."
  }

  validation {
    condition     = alltrue([for subscriber in var.offline_subscribers : try(contains(["MessageAttributes", "MessageBody"], subscriber.filter_policy_scope), true)])
    error_message = "offline_subscribers: filter_policy_scope must be MessageAttributes or MessageBody."
  }

  validation {
    condition     = alltrue([for subscriber in var.offline_subscribers : try(!subscriber.raw_message_delivery || contains(["firehose", "https", "sqs"], subscriber.protocol), true)])
    error_message = "offline_subscribers: raw_message_delivery is for firehose, https and sqs."
  }

  validation {
    condition = alltrue([
      for subscriber in var.offline_subscribers :
      try(subscriber.protocol == "firehose" ? can(regex("^arn:[a-z-]+:iam::\\d{12}:role/\\S+$", subscriber.subscription_role_arn)) : subscriber.subscription_role_arn == null, true)
    ])
    error_message = "offline_subscribers: firehose requires subscription_role_arn, the whole ARN of the role with which SNS writes to the delivery stream. Other protocols do not allow it."
  }
}
