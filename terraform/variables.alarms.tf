variable "alarm_actions" {
  description = "ARNs of the SNS topics that get a message when an alarm starts and when it ends. Without any, alarms only show on the dashboard."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    # CloudWatch takes five actions for each change of state.
    condition = length(var.alarm_actions) <= 5 && alltrue([
      for arn in var.alarm_actions : can(regex("^arn:[a-z-]+:sns:[a-z0-9-]+:\\d{12}:[A-Za-z0-9_-]{1,256}$", arn))
    ])
    error_message = "alarm_actions must be at most 5 ARNs of standard SNS topics, such as arn:aws:sns:eu-west-1:123456789012:on-call."
  }

  validation {
    condition     = alltrue([for arn in var.alarm_actions : try(split(":", arn)[3] == local.region, true)])
    error_message = "alarm_actions must be topics of the region of the alarms, ${local.region}."
  }
}

variable "alarm_thresholds" {
  description = <<-EOT
    Alarm thresholds that depend on your user base. undelivered_percent: failed posts within five minutes.
    refused_percent: rejected connects within five minutes. offline_age_seconds: age of the oldest message in the SQS
    queue for offline users (null: half of the queue's retention). client_errors: errors within five minutes with which
    API Gateway itself answers clients. broadcast_seconds: time from the start of a broadcast to its end.
  EOT
  type = object({
    undelivered_percent = optional(number, 10)
    refused_percent     = optional(number, 50)
    offline_age_seconds = optional(number)
    client_errors       = optional(number, 100)
    broadcast_seconds   = optional(number, 60)
  })
  default  = {}
  nullable = false

  validation {
    condition = alltrue([
      for percent in [var.alarm_thresholds.undelivered_percent, var.alarm_thresholds.refused_percent] :
      try(percent > 0 && percent <= 100, false)
    ])
    error_message = "alarm_thresholds: undelivered_percent and refused_percent must be more than 0 and at most 100."
  }

  validation {
    condition = var.alarm_thresholds.offline_age_seconds == null || try(
      var.alarm_thresholds.offline_age_seconds >= 60 && var.alarm_thresholds.offline_age_seconds <= 1209600,
      false,
    )
    error_message = "alarm_thresholds: offline_age_seconds must be from 60 to 1209600, the 14 days that SQS keeps a message."
  }

  validation {
    condition     = try(var.alarm_thresholds.client_errors >= 1, false)
    error_message = "alarm_thresholds: client_errors must be at least 1."
  }

  validation {
    condition     = try(var.alarm_thresholds.broadcast_seconds > 0, false)
    error_message = "alarm_thresholds: broadcast_seconds must be more than 0."
  }
}
