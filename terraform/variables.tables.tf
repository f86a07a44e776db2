variable "existing_tables" {
  description = <<-EOT
    Existing tables to use instead of new ones: users, whose only key is userId, and shelters, whose only key is
    shelterId, both strings. They must be in the same account and region. kms_key_arn is the customer managed key that
    encrypts the table, if there is one. docs/data.md describes the attributes that Muster reads.
  EOT
  type = object({
    users    = optional(object({ arn = string, kms_key_arn = optional(string) }))
    shelters = optional(object({ arn = string, kms_key_arn = optional(string) }))
  })
  default  = {}
  nullable = false

  validation {
    condition = alltrue([
      for table in values(var.existing_tables) :
      table == null || can(regex("^arn:[a-z-]+:dynamodb:[a-z0-9-]+:\\d{12}:table/[A-Za-z0-9_.-]{3,255}$", table.arn))
    ])
    error_message = "existing_tables: each arn must be the whole ARN of a DynamoDB table (arn:aws:dynamodb:<region>:<account>:table/<name>)."
  }

  validation {
    condition = alltrue([
      for table in values(var.existing_tables) :
      try(table.kms_key_arn, null) == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:\\d{12}:key/[A-Za-z0-9-]+$", table.kms_key_arn))
    ])
    error_message = "existing_tables: each kms_key_arn must be the whole ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>), not an alias."
  }
}

variable "audience_shards" {
  description = "Index partitions over which each role, and the audience of all, is spread: one DynamoDB partition takes 1,000 writes/s. Existing rows keep their shard, so lower it only while no client is connected."
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.audience_shards >= 1 && var.audience_shards <= 64 && floor(var.audience_shards) == var.audience_shards
    error_message = "audience_shards must be a whole number from 1 to 64."
  }

  # A target may name every role, and also 100 users and shelters. When all of their partitions stay unreached, the state
  # machine carries some 170 bytes for each, and a state takes 256 KiB; its 25,000 events are enough for some 2,000.
  validation {
    condition     = var.audience_shards * length(var.roles) <= 1200
    error_message = "audience_shards times the number of roles must be at most 1,200: one broadcast may name every role."
  }
}

variable "connection_ttl_seconds" {
  description = "Longest life of a connection's row, in seconds. A token that expires earlier ends it earlier."
  type        = number
  default     = 86400
  nullable    = false

  validation {
    condition     = var.connection_ttl_seconds >= 60 && var.connection_ttl_seconds <= 604800 && floor(var.connection_ttl_seconds) == var.connection_ttl_seconds
    error_message = "connection_ttl_seconds must be a whole number from 60 (a minute) to 604800 (a week)."
  }
}

variable "message_retention_days" {
  description = "Days for which a message can be resumed. The SQS queue for offline users keeps notifications as long, up to the 14 days that SQS allows."
  type        = number
  default     = 7
  nullable    = false

  validation {
    condition     = var.message_retention_days >= 1 && var.message_retention_days <= 365 && floor(var.message_retention_days) == var.message_retention_days
    error_message = "message_retention_days must be a whole number from 1 to 365."
  }
}
