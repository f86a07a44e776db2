variable "name" {
  description = "Name of the function, its role and its log group."
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
  description = "Memory in MB. CPU grows with it: 1,769 MB is one vCPU."
  type        = number
}

variable "timeout_seconds" {
  description = "Time-out of an invocation in seconds."
  type        = number
}

variable "reserved_concurrency" {
  description = "Reserved concurrency of the function, which is also its limit; null uses the account's concurrency."
  type        = number
}

variable "snap_start" {
  description = "Whether each change publishes a version with a snapshot, and callers invoke the alias `live`."
  type        = bool
}

variable "environment" {
  description = "Environment variables."
  type        = map(string)
}

variable "statements" {
  description = "IAM statements of the function, in addition to writing its logs and traces."
  type = list(object({
    actions    = list(string)
    resources  = list(string)
    conditions = optional(map(map(list(string))))
  }))
}

variable "account_id" {
  description = "Account that Lambda must act for when it assumes the function's role."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of the function's role; null for none."
  type        = string
}

variable "kms_key_arn" {
  description = "Customer managed key that encrypts the log group and the environment; null for AWS's own key."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the log group keeps its events."
  type        = number
}

variable "tags" {
  description = "Tags of the function, its role and its log group."
  type        = map(string)
}
