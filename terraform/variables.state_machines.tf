variable "page_size" {
  description = "Connections that fanout reads with one Query."
  type        = number
  default     = 500
  nullable    = false

  validation {
    # The largest page that fits the 256 KiB of a state with the longest ids and envelope.
    condition     = var.page_size >= 1 && var.page_size <= 500 && floor(var.page_size) == var.page_size
    error_message = "page_size must be a whole number from 1 to 500."
  }
}

variable "batch_size" {
  description = "Connections to which one deliver invocation posts."
  type        = number
  default     = 250
  nullable    = false

  validation {
    condition     = var.batch_size >= 1 && var.batch_size <= 1000 && floor(var.batch_size) == var.batch_size
    error_message = "batch_size must be a whole number from 1 to 1000."
  }
}

variable "partition_concurrency" {
  description = "Partitions that one broadcast fans out to at a time."
  type        = number
  default     = 10
  nullable    = false

  validation {
    condition     = var.partition_concurrency >= 1 && var.partition_concurrency <= 40 && floor(var.partition_concurrency) == var.partition_concurrency
    error_message = "partition_concurrency must be a whole number from 1 to 40, the most that an inline Map runs at a time."
  }
}

variable "batch_concurrency" {
  description = "Batches that one partition delivers at a time."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.batch_concurrency >= 1 && var.batch_concurrency <= 40 && floor(var.batch_concurrency) == var.batch_concurrency
    error_message = "batch_concurrency must be a whole number from 1 to 40, the most that an inline Map runs at a time."
  }
}

variable "post_concurrency" {
  description = "Posts in flight at a time within one deliver invocation."
  type        = number
  default     = 64
  nullable    = false

  validation {
    condition     = var.post_concurrency >= 1 && var.post_concurrency <= 512 && floor(var.post_concurrency) == var.post_concurrency
    error_message = "post_concurrency must be a whole number from 1 to 512."
  }
}

variable "post_rate" {
  description = "Posts per second of one broadcast. null: 95% of the region's default quota, which is shared with connects, client messages and other APIs: 9,500, or 2,375 in the regions with a lower quota."
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.post_rate, 1) >= 1
    error_message = "post_rate must be at least 1 post per second."
  }

  # A deliver invocation has 28 s to post its batch.
  validation {
    condition     = var.batch_size * var.partition_concurrency * var.batch_concurrency <= 20 * max(coalesce(var.post_rate, local.default_post_rate), 1)
    error_message = "post_rate is too low: with batch_size, partition_concurrency and batch_concurrency as they are, a batch would take more than 20 s. Raise it, or lower one of them."
  }
}

variable "post_burst" {
  description = "Posts that one broadcast makes at once, before post_rate counts. null: 90% of the region's default burst quota: 4,500, or 1,125 in the regions with a lower quota."
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.post_burst, 0) >= 0
    error_message = "post_burst must be 0 or more."
  }
}
