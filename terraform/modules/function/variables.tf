variable "name" {
  description = "Name of the function; its role and log group are named after it."
  type        = string
}

variable "description" {
  description = "What the function does, in one sentence."
  type        = string
}

variable "handler" {
  description = "Dotted path of the handler within the bundle."
  type        = string
}

variable "bundle" {
  description = "Path of the zip file with the function's code."
  type        = string
}

variable "layers" {
  description = "ARNs of the layer versions that the function imports from."
  type        = list(string)
}

variable "runtime" {
  description = "Lambda runtime."
  type        = string
}

variable "architecture" {
  description = "Instruction set: arm64 or x86_64."
  type        = string
}

variable "memory_mb" {
  description = "Memory in MB; the share of a CPU grows with it, 1,769 MB being one."
  type        = number
}

variable "timeout_seconds" {
  description = "Longest run of one invocation, in seconds."
  type        = number
}

variable "reserved_concurrency" {
  description = "Invocations at a time that are kept for the function, and the most it gets; null shares the account's."
  type        = number
}

variable "snap_start" {
  description = "Whether each change publishes a version that starts from a snapshot, and callers invoke the alias `live`."
  type        = bool
}

variable "environment" {
  description = "Environment variables."
  type        = map(string)
}

variable "statements" {
  description = "What the function may do beside writing its own logs and traces."
  type = list(object({
    actions    = list(string)
    resources  = list(string)
    conditions = optional(map(map(list(string))))
  }))
}

variable "account_id" {
  description = "Account in whose name alone Lambda may assume the function's role."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "IAM policy that bounds the function's role; null for none."
  type        = string
}

variable "kms_key_arn" {
  description = "Customer managed key of the log group and the environment; null for AWS's own."
  type        = string
}

variable "log_retention_days" {
  description = "Days for which the log group keeps its events."
  type        = number
}

variable "tags" {
  description = "Tags of the function, its role and its log group."
  type        = map(string)
}
