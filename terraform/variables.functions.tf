variable "bundle_dir" {
  description = "Folder with functions.zip, layer.zip and bundle.json, as `make build` writes it; relative to where Terraform runs."
  type        = string
  default     = "../build"
  nullable    = false
}

variable "lambda_runtime" {
  description = "Runtime of every function. layer.zip must be built for it."
  type        = string
  default     = "python3.13"
  nullable    = false

  validation {
    condition     = can(regex("^python3\\.1[1-9]$", var.lambda_runtime))
    error_message = "lambda_runtime must be python3.11 or later, for example python3.13."
  }
}

variable "lambda_architecture" {
  description = "Instruction set of every function. layer.zip must be built for it."
  type        = string
  default     = "arm64"
  nullable    = false

  validation {
    condition     = contains(["arm64", "x86_64"], var.lambda_architecture)
    error_message = "lambda_architecture must be arm64 or x86_64."
  }
}

variable "lambda_memory_mb" {
  description = "Memory of every function for which `functions` sets none. 512 MB are about 0.3 vCPU, several times what deliver needs to post at its pace."
  type        = number
  default     = 512
  nullable    = false

  validation {
    condition     = var.lambda_memory_mb >= 128 && var.lambda_memory_mb <= 10240 && floor(var.lambda_memory_mb) == var.lambda_memory_mb
    error_message = "lambda_memory_mb must be a whole number from 128 to 10240."
  }
}

variable "functions" {
  description = <<-EOT
    Settings of single functions, by name: accept, connect, default, deliver, disconnect or offline. memory_mb replaces
    lambda_memory_mb. timeout_seconds may be 10 to 29 for connect, disconnect and default, and 10 to 12 for accept.
    reserved_concurrency reserves this number of the account's concurrent invocations for the function, and limits it
    to them; without it, the function shares the account's.
  EOT
  type = map(object({
    memory_mb            = optional(number)
    timeout_seconds      = optional(number)
    reserved_concurrency = optional(number)
  }))
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for name in keys(var.functions) : contains(keys(local.timeouts), name)])
    error_message = "functions must be named ${join(", ", keys(local.timeouts))}."
  }

  validation {
    condition = alltrue([
      for memory in [for function in values(var.functions) : function.memory_mb if try(function.memory_mb, null) != null] :
      memory >= 128 && memory <= 10240 && floor(memory) == memory
    ])
    error_message = "functions: memory_mb must be a whole number from 128 to 10240."
  }

  validation {
    condition = alltrue([
      for name, seconds in { for name, function in var.functions : name => function.timeout_seconds if try(function.timeout_seconds, null) != null } :
      try(seconds >= local.timeouts[name].default && seconds <= local.timeouts[name].longest && floor(seconds) == seconds, true)
    ])
    error_message = "functions: timeout_seconds must be a whole number of seconds for which the callers wait: ${join(", ", [for name, timeout in local.timeouts : "${name} ${timeout.default} to ${timeout.longest}"])}. API Gateway gives up after 29 s, and the state machines 3 s after the longest of these."
  }

  validation {
    condition = alltrue([
      for reserved in [for function in values(var.functions) : function.reserved_concurrency if try(function.reserved_concurrency, null) != null] :
      reserved >= 1 && floor(reserved) == reserved
    ])
    error_message = "functions: reserved_concurrency must be a whole number of at least 1; 0 would reject every invocation."
  }

  # With less, the batches of a single broadcast would throttle each other.
  validation {
    condition     = try(var.functions["deliver"].reserved_concurrency >= var.partition_concurrency * var.batch_concurrency, true)
    error_message = "functions: reserved_concurrency of deliver must be at least partition_concurrency times batch_concurrency, the invocations of one broadcast at a time."
  }

  validation {
    condition     = try(var.functions["offline"].reserved_concurrency >= var.partition_concurrency, true)
    error_message = "functions: reserved_concurrency of offline must be at least partition_concurrency, the invocations of one broadcast at a time."
  }
}

variable "snap_start" {
  description = "Whether functions start from a snapshot of their imports (SnapStart). AWS charges for keeping and restoring the snapshots of every version."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !var.snap_start || var.lambda_runtime != "python3.11"
    error_message = "snap_start needs a lambda_runtime of python3.12 or later."
  }
}
