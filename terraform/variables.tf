variable "name_prefix" {
  description = "Starts the name of every resource, so that several deployments can share an account."
  type        = string
  default     = "muster"
  nullable    = false

  validation {
    # The longest role name prefix, "<name_prefix>-disconnect-", must stay within IAM's 38 characters.
    # X-Ray reserves the group name "Default".
    condition     = can(regex("^[a-z][a-z0-9-]{0,22}[a-z0-9]$", var.name_prefix)) && var.name_prefix != "default"
    error_message = "name_prefix must be 2 to 24 lower-case letters, digits and hyphens, start with a letter and not end with a hyphen, and not be default."
  }
}

variable "tags" {
  description = "Tags of every resource that supports tags."
  type        = map(string)
  default     = {}
  nullable    = false

  # IAM's rules: no other service that is tagged here is stricter, but X-Ray (queries.tf) [IAM API, Tag; IAM User Guide, Tags
  # for IAM resources]. The provider's default_tags get onto the same resources.
  validation {
    condition = alltrue([
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) :
      can(regex("^[\\p{L}\\p{Z}\\p{N}_.:/=+@-]{1,128}$", key)) && can(regex("^[\\p{L}\\p{Z}\\p{N}_.:/=+@-]{0,256}$", value))
    ])
    error_message = "tags, or the provider's default_tags: IAM rejects ${join(", ", [
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : jsonencode(key)
      if !can(regex("^[\\p{L}\\p{Z}\\p{N}_.:/=+@-]{1,128}$", key)) || !can(regex("^[\\p{L}\\p{Z}\\p{N}_.:/=+@-]{0,256}$", value))
    ])}. A key must be 1 to 128 and a value at most 256 letters, digits, spaces and _ . : / = + - @."
  }

  validation {
    condition = alltrue([
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : !can(regex("(?i)^aws:", key)) && !can(regex("(?i)^aws:", value))
    ])
    error_message = "tags, or the provider's default_tags: neither a key nor a value may start with aws:, which AWS reserves: ${join(", ", [
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : jsonencode(key)
      if can(regex("(?i)^aws:", key)) || can(regex("(?i)^aws:", value))
    ])}."
  }

  validation {
    condition     = length(merge(data.aws_default_tags.current.tags, var.tags)) <= 50
    error_message = "tags: AWS allows 50 for a resource. With the provider's default_tags there are ${length(merge(data.aws_default_tags.current.tags, var.tags))}. Remove some."
  }

  validation {
    condition = length(distinct([for key, value in merge(data.aws_default_tags.current.tags, var.tags) : lower(key)])) == length(merge(data.aws_default_tags.current.tags, var.tags))
    error_message = "tags: IAM treats keys that differ only in case as the same key, and rejects both: ${join(", ", [
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : key
      if length([for other, value in merge(data.aws_default_tags.current.tags, var.tags) : other if lower(other) == lower(key)]) > 1
    ])}. Use one spelling, here and in the provider's default_tags."
  }
}

variable "kms_key_arn" {
  description = "Customer managed key that encrypts tables, topic, queues, logs, the created secret, the functions' environment and the state machines' executions; its policy must contain what the output kms_key_policy_json contains. Without it AWS manages the keys."
  type        = string
  default     = null

  validation {
    # Not an alias: IAM policies name keys only.
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:\\d{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the whole ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>), not an alias."
  }

  validation {
    condition     = var.kms_key_arn == null || try(split(":", var.kms_key_arn)[3] == local.region, true)
    error_message = "kms_key_arn must be a key of the same region, ${local.region}."
  }
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary: the IAM policy that limits every role created here, if the account requires one."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary_arn == null || can(regex("^arn:[a-z-]+:iam::(\\d{12}|aws):policy/\\S+$", var.permissions_boundary_arn))
    error_message = "permissions_boundary_arn must be the whole ARN of an IAM policy (arn:aws:iam::<account>:policy/<name>)."
  }
}

variable "deletion_protection" {
  description = "Whether DynamoDB refuses to delete the tables and a deleted secret can be restored for 30 days. Apply with false before you destroy."
  type        = bool
  default     = true
  nullable    = false
}
