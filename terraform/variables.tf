# ---- Names ---------------------------------------------------------------------------------------------------

variable "name_prefix" {
  description = "Starts the name of every resource, so that several deployments can share an account."
  type        = string
  default     = "muster"
  nullable    = false

  validation {
    # The longest role name prefix, "<name_prefix>-disconnect-", must stay within IAM's 38 characters.
    # X-Ray keeps the group name "Default" to itself.
    condition     = can(regex("^[a-z][a-z0-9-]{0,22}[a-z0-9]$", var.name_prefix)) && var.name_prefix != "default"
    error_message = "name_prefix must be 2 to 24 lower-case letters, digits and hyphens, start with a letter and not end with a hyphen, and not be default."
  }
}

variable "tags" {
  description = "Tags of every resource that takes tags."
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
    error_message = "tags, or the provider's default_tags: IAM refuses ${join(", ", [
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : jsonencode(key)
      if !can(regex("^[\\p{L}\\p{Z}\\p{N}_.:/=+@-]{1,128}$", key)) || !can(regex("^[\\p{L}\\p{Z}\\p{N}_.:/=+@-]{0,256}$", value))
    ])}. A key must be 1 to 128 and a value at most 256 letters, digits, spaces and _ . : / = + - @."
  }

  validation {
    condition = alltrue([
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : !can(regex("(?i)^aws:", key)) && !can(regex("(?i)^aws:", value))
    ])
    error_message = "tags, or the provider's default_tags: neither a key nor a value may start with aws:, which AWS keeps to itself: ${join(", ", [
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : jsonencode(key)
      if can(regex("(?i)^aws:", key)) || can(regex("(?i)^aws:", value))
    ])}."
  }

  validation {
    condition     = length(merge(data.aws_default_tags.current.tags, var.tags)) <= 50
    error_message = "tags: AWS takes 50 for a resource, and with the provider's default_tags there are ${length(merge(data.aws_default_tags.current.tags, var.tags))}. Remove some."
  }

  validation {
    condition = length(distinct([for key, value in merge(data.aws_default_tags.current.tags, var.tags) : lower(key)])) == length(merge(data.aws_default_tags.current.tags, var.tags))
    error_message = "tags: IAM takes keys that differ only in case for the same key, and refuses both: ${join(", ", [
      for key, value in merge(data.aws_default_tags.current.tags, var.tags) : key
      if length([for other, value in merge(data.aws_default_tags.current.tags, var.tags) : other if lower(other) == lower(key)]) > 1
    ])}. Use one spelling, here and in the provider's default_tags."
  }
}

# ---- Protection ----------------------------------------------------------------------------------------------

variable "kms_key_arn" {
  description = "Customer managed key that encrypts tables, topic, queues, logs, the created secret, the functions' environment and the state machines' executions; its policy must hold what the output kms_key_policy_json says. Without it AWS manages the keys."
  type        = string
  default     = null

  validation {
    # Not an alias: IAM policies name keys only.
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:\\d{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the whole ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>), not an alias."
  }

  validation {
    condition     = var.kms_key_arn == null || try(split(":", var.kms_key_arn)[3] == local.region, true)
    error_message = "kms_key_arn must be a key of the region that everything else is in, ${local.region}."
  }
}

variable "permissions_boundary_arn" {
  description = "IAM policy that bounds every role made here, where the account asks for one."
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

# ---- Functions -----------------------------------------------------------------------------------------------

variable "bundle_dir" {
  description = "Folder with functions.zip, layer.zip and bundle.json, as `make build` writes it; relative to where Terraform runs."
  type        = string
  default     = "../build"
  nullable    = false
}

variable "lambda_runtime" {
  description = "Runtime of every function; layer.zip must be built for the same one."
  type        = string
  default     = "python3.13"
  nullable    = false

  validation {
    condition     = can(regex("^python3\\.1[1-9]$", var.lambda_runtime))
    error_message = "lambda_runtime must be python3.11 or later, for example python3.13."
  }
}

variable "lambda_architecture" {
  description = "Instruction set of every function; layer.zip must be built for the same one."
  type        = string
  default     = "arm64"
  nullable    = false

  validation {
    condition     = contains(["arm64", "x86_64"], var.lambda_architecture)
    error_message = "lambda_architecture must be arm64 or x86_64."
  }
}

variable "lambda_memory_mb" {
  description = "Memory of every function that `functions` gives none. 512 MB are about 0.3 vCPU, several times what deliver needs to post at its pace."
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
    What differs from function to function, by name: accept, connect, default, deliver, disconnect or offline.
    memory_mb instead of lambda_memory_mb. timeout_seconds, where there is room: 10 to 29 for connect, disconnect and
    default, 10 to 12 for accept. reserved_concurrency keeps so many of the account's concurrent invocations for the
    function and gives it no more; without it, it shares the account's.
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
    error_message = "functions: timeout_seconds must be a whole number within what the callers wait: ${join(", ", [for name, timeout in local.timeouts : "${name} ${timeout.default} to ${timeout.longest}"])}. API Gateway gives up after 29 s, and the state machines 3 s after the longest of these."
  }

  validation {
    condition = alltrue([
      for reserved in [for function in values(var.functions) : function.reserved_concurrency if try(function.reserved_concurrency, null) != null] :
      reserved >= 1 && floor(reserved) == reserved
    ])
    error_message = "functions: reserved_concurrency must be a whole number of at least 1; 0 would refuse every invocation."
  }

  # With less, a single broadcast would be throttled by its own batches.
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
  description = "Whether functions start from a snapshot of their imports instead of importing anew; AWS charges for keeping and restoring the snapshots of every version."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !var.snap_start || var.lambda_runtime != "python3.11"
    error_message = "snap_start needs a lambda_runtime of python3.12 or later."
  }
}

# ---- Logs ----------------------------------------------------------------------------------------------------

variable "log_retention_days" {
  description = "Days for which every log group keeps its events."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition = contains(
      [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653],
      var.log_retention_days,
    )
    error_message = "log_retention_days must be a period that CloudWatch Logs offers: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}

variable "log_level" {
  description = "Lowest level that the functions log."
  type        = string
  default     = "INFO"
  nullable    = false

  validation {
    condition     = contains(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], var.log_level)
    error_message = "log_level must be DEBUG, INFO, WARNING, ERROR or CRITICAL."
  }
}

variable "access_logs" {
  description = "Whether the WebSocket stage writes access logs; AWS asks for a CloudWatch role in the region's API Gateway account settings first."
  type        = bool
  default     = false
  nullable    = false
}

# ---- Alarms --------------------------------------------------------------------------------------------------

variable "alarm_actions" {
  description = "ARNs of the SNS topics that are told when an alarm goes off, and when it is over; without any, alarms only show on the dashboard."
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
    error_message = "alarm_actions must be topics of the region that the alarms are in, ${local.region}."
  }
}

variable "alarm_thresholds" {
  description = <<-EOT
    When it is too much, where that depends on your people: undelivered_percent of the posts of five minutes failed,
    refused_percent of the connects of five minutes refused, offline_age_seconds that a message waits in the offline
    queue (null: half of what the queue keeps), client_errors of five minutes that API Gateway answers itself,
    broadcast_seconds from the start of a broadcast to its end.
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

# ---- Who may do what -----------------------------------------------------------------------------------------

variable "roles" {
  description = "Each role's permitted client actions; own_shelter_only restricts shelter_update to the user's own shelter and its audience. It does not restrict alert and broadcast: leave them out of actions."
  type = map(object({
    actions          = set(string)
    own_shelter_only = optional(bool, false)
  }))
  default = {
    admin            = { actions = ["alert", "broadcast", "shelter_update"] }
    coordinator      = { actions = ["alert", "broadcast", "shelter_update"] }
    shelter_operator = { actions = ["shelter_update"], own_shelter_only = true }
    first_responder  = { actions = ["alert"] }
    resident         = { actions = [] }
  }
  nullable = false

  validation {
    condition     = length(var.roles) >= 1 && length(var.roles) <= 100
    error_message = "roles must name 1 to 100 roles."
  }

  validation {
    condition     = alltrue([for name in keys(var.roles) : can(regex("^[a-z][a-z0-9_]{0,31}$", name))])
    error_message = "roles: a role's name must be 1 to 32 lower-case letters, digits and underscores, and start with a letter."
  }

  validation {
    condition = alltrue([
      for role in values(var.roles) : try(length(setsubtract(role.actions, ["alert", "broadcast", "shelter_update"])) == 0, false)
    ])
    error_message = "roles: actions must be among alert, broadcast and shelter_update."
  }

  # Lambda takes 4 KB of environment, and measures it as JSON, within which this is quoted once more.
  validation {
    condition     = length(jsonencode(jsonencode(var.roles))) <= 2400
    error_message = "roles must take at most 2,400 characters of the functions' environment: some 25 of them, or more with short names and few actions."
  }
}

variable "jwt" {
  description = <<-EOT
    How a client's token is verified. HS256, HS384 and HS512 use a shared secret of Secrets Manager: `secret`, with its
    ARN and the customer managed key that encrypts it, if one does, or else one that this module creates. Its value is the
    key itself and nothing else: the text as it is, or the bytes of a binary secret. JSON, such as {"key": "..."}, fails
    every handshake with an error that says so; white space, a newline or quotation marks around the key are part of it,
    with a warning in the log. RS256, RS384, RS512, ES256, ES384 and ES512 use the public keys at jwks_url, without
    following redirects: those with use "sig" or none, for the algorithms named. A token without a kid is verified by
    the only key without one.
    Both are read every five minutes. While they cannot be read, the last ones are used for at most 24 hours.
    The two families never mix: a verifier that takes both can be fooled into using a public key as a secret.
  EOT
  type = object({
    algorithms = optional(list(string), ["HS256"])
    issuer     = optional(string, "muster")
    audience   = optional(string, "muster")
    secret     = optional(object({ arn = string, kms_key_arn = optional(string) }))
    jwks_url   = optional(string)
  })
  default  = {}
  nullable = false

  validation {
    condition = length(var.jwt.algorithms) > 0 && alltrue([
      for algorithm in var.jwt.algorithms : can(regex("^(HS|RS|ES)(256|384|512)$", algorithm))
    ])
    error_message = "jwt.algorithms must name at least one of HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384 and ES512."
  }

  validation {
    condition     = try(length(distinct([for algorithm in var.jwt.algorithms : startswith(algorithm, "HS")])) <= 1, true)
    error_message = "jwt.algorithms must not mix secrets (HS256, HS384, HS512) with public keys (RS..., ES...)."
  }

  validation {
    condition     = trimspace(var.jwt.issuer) != "" && trimspace(var.jwt.audience) != ""
    error_message = "jwt.issuer and jwt.audience must not be empty."
  }

  # A function's whole environment may take 4 KB.
  validation {
    condition     = length(join("", compact([var.jwt.issuer, var.jwt.audience, var.jwt.jwks_url]))) <= 600
    error_message = "jwt.issuer, jwt.audience and jwt.jwks_url must be at most 600 characters in all."
  }

  validation {
    condition     = var.jwt.secret == null || try(alltrue([for algorithm in var.jwt.algorithms : startswith(algorithm, "HS")]), true)
    error_message = "jwt.secret belongs to HS256, HS384 and HS512 only; RS... and ES... take jwks_url."
  }

  validation {
    # IAM compares the whole: without the six characters that AWS adds to the name, every handshake would be refused.
    condition     = var.jwt.secret == null || can(regex("^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:\\d{12}:secret:.+-[A-Za-z0-9]{6}$", var.jwt.secret.arn))
    error_message = "jwt.secret.arn must be the whole ARN of a Secrets Manager secret, with the hyphen and six characters at its end (arn:aws:secretsmanager:<region>:<account>:secret:<name>-<6 characters>)."
  }

  validation {
    condition     = try(var.jwt.secret.kms_key_arn, null) == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:\\d{12}:key/[A-Za-z0-9-]+$", var.jwt.secret.kms_key_arn))
    error_message = "jwt.secret.kms_key_arn must be the whole ARN of the KMS key (arn:aws:kms:<region>:<account>:key/<id>) that encrypts the secret."
  }

  validation {
    condition     = var.jwt.secret == null || try(split(":", var.jwt.secret.arn)[3] == local.region, true)
    error_message = "jwt.secret.arn must be a secret of the region that everything else is in, ${local.region}."
  }

  validation {
    condition     = try((var.jwt.jwks_url != null) == anytrue([for algorithm in var.jwt.algorithms : !startswith(algorithm, "HS")]), true)
    error_message = "jwt.jwks_url is required with RS... and ES..., and belongs to them only."
  }

  validation {
    condition     = var.jwt.jwks_url == null || can(regex("^(https://[^/@\\s]+|http://127\\.0\\.0\\.1(:\\d+)?)(/\\S*)?$", var.jwt.jwks_url))
    error_message = "jwt.jwks_url must start with https:// (http:// for 127.0.0.1 only), and hold no user name or password."
  }
}

# ---- Data ----------------------------------------------------------------------------------------------------

variable "existing_tables" {
  description = <<-EOT
    Tables that you have already, instead of those made here: users, whose only key is userId, and shelters, whose only
    key is shelterId, both strings. They must be in the same account and region. kms_key_arn is the customer managed key
    that encrypts the table, if one does. docs/data.md has the attributes that are read.
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

# ---- Offline -------------------------------------------------------------------------------------------------

variable "offline_subscribers" {
  description = <<-EOT
    Who else gets what no open connection took, each under a name of your own, as schemas/offline-notification.schema.json
    has it; to word it for people, subscribe a function. filter_policy is SNS's, as JSON, over the attributes type, reason,
    role, shelterId and userId or, with filter_policy_scope MessageBody, over the notification. raw_message_delivery leaves
    SNS's own envelope out. What cannot be delivered is kept in the queue offline-undeliverable. E-mail addresses and https
    endpoints must confirm; a queue's own policy must let the topic send; a function is to be of this account and region.
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
    error_message = "offline_subscribers: a name must be 1 to 64 letters, digits, hyphens and underscores, and stand for a protocol and an endpoint."
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

  # Its permission is made here.
  validation {
    condition     = alltrue([for subscriber in var.offline_subscribers : try(subscriber.protocol != "lambda" || strcontains(subscriber.endpoint, ":lambda:${local.arn_scope}:"), true)])
    error_message = "offline_subscribers: a lambda function must be of this region and account, ${local.arn_scope}."
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
    error_message = "offline_subscribers: firehose, and nothing else, needs subscription_role_arn, the whole ARN of the role by which SNS writes to the delivery stream."
  }
}

# ---- Delivery ------------------------------------------------------------------------------------------------

variable "connection_ttl_seconds" {
  description = "Longest life of a connection's row, in seconds; a token that expires earlier ends it earlier."
  type        = number
  default     = 86400
  nullable    = false

  validation {
    condition     = var.connection_ttl_seconds >= 60 && var.connection_ttl_seconds <= 604800 && floor(var.connection_ttl_seconds) == var.connection_ttl_seconds
    error_message = "connection_ttl_seconds must be a whole number from 60 (a minute) to 604800 (a week)."
  }
}

variable "message_retention_days" {
  description = "Days for which a message can be resumed; the offline queue keeps it as long, up to the 14 days that SQS allows."
  type        = number
  default     = 7
  nullable    = false

  validation {
    condition     = var.message_retention_days >= 1 && var.message_retention_days <= 365 && floor(var.message_retention_days) == var.message_retention_days
    error_message = "message_retention_days must be a whole number from 1 to 365."
  }
}

variable "audience_shards" {
  description = "Index partitions over which each role, and everybody, is spread: one DynamoDB partition takes 1,000 writes/s. Existing rows keep their shard, so lower it only while nobody is connected."
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.audience_shards >= 1 && var.audience_shards <= 64 && floor(var.audience_shards) == var.audience_shards
    error_message = "audience_shards must be a whole number from 1 to 64."
  }

  # A target may name every role, and 100 users and shelters besides. When all of their partitions stay unreached, the state
  # machine carries some 170 bytes for each, and a state takes 256 KiB; its 25,000 events would hold some 2,000 partitions.
  validation {
    condition     = var.audience_shards * length(var.roles) <= 1200
    error_message = "audience_shards times the number of roles must be at most 1,200: one broadcast may name every role."
  }
}

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
  description = "Posts per second of one broadcast. null: 95% of the region's default quota, which connects, client messages and other APIs share: 9,500, or 2,375 in the regions with a lower quota."
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

# ---- WebSocket API -------------------------------------------------------------------------------------------

variable "stage_name" {
  description = "Stage of the WebSocket API; the last part of its address."
  type        = string
  default     = "live"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,128}$", var.stage_name))
    error_message = "stage_name must be 1 to 128 letters, digits, hyphens and underscores."
  }
}

variable "custom_domain" {
  description = <<-EOT
    Domain name at which clients open the API: domain_name, such as live.example.org, and certificate_arn, an ACM
    certificate for it in the API's region. With zone, its Route 53 zone, the record is made too; without, point one at
    the output custom_domain_target. The default endpoint (execute-api) stays open beside it, and functions post there.
    With close_default_endpoint it answers 403 to clients and posts alike, and functions post to the custom domain: set
    it in a later apply, once clients connect at the domain.
  EOT
  type = object({
    domain_name     = string
    certificate_arn = string
    zone            = optional(object({ id = string }))

    close_default_endpoint = optional(bool, false)
  })
  default = null

  validation {
    condition     = var.custom_domain == null || can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])$", var.custom_domain.domain_name))
    error_message = "custom_domain.domain_name must be a host name in lower case, such as live.example.org, without https:// and without a path."
  }

  validation {
    condition     = var.custom_domain == null || can(regex("^arn:[a-z-]+:acm:[a-z0-9-]+:\\d{12}:certificate/[A-Za-z0-9-]+$", var.custom_domain.certificate_arn))
    error_message = "custom_domain.certificate_arn must be the ARN of an ACM certificate, arn:aws:acm:<region>:<account>:certificate/<id>."
  }

  validation {
    condition     = try(var.custom_domain.zone, null) == null || can(regex("^Z[A-Z0-9]{1,31}$", var.custom_domain.zone.id))
    error_message = "custom_domain.zone.id must be the id of a Route 53 hosted zone, such as Z0123456789ABCDEFGHIJ."
  }

  validation {
    condition     = var.custom_domain == null || var.execute_api_url == null
    error_message = "custom_domain is for AWS only; execute_api_url says that the endpoint is another."
  }
}

variable "allowed_origins" {
  description = "Sites whose web pages may connect, such as https://app.example.org, and web views of apps, such as capacitor://localhost; empty allows every site. Clients that are no browsers send no Origin and pass: the token decides about them."
  type        = list(string)
  default     = []
  nullable    = false

  # As browsers write an Origin, since the two are compared letter by letter: lower case, no default port, no path.
  validation {
    condition = alltrue([
      for origin in var.allowed_origins :
      can(regex("^[a-z][a-z0-9+.-]*://[a-z0-9.-]*[a-z0-9](:\\d{1,5})?$", origin)) &&
      !can(regex("^(https://.*:443|http://.*:80)$", origin)) &&
      (!can(regex("^http://", origin)) || can(regex("^http://(localhost|127\\.0\\.0\\.1)(:\\d+)?$", origin)))
    ])
    error_message = "allowed_origins must be written as browsers do, https://host or https://host:port in lower case, or the web view of an app, such as capacitor://localhost, without a path, a trailing slash, a * or the default port (http:// for localhost and 127.0.0.1 only)."
  }

  # A function's whole environment may take 4 KB.
  validation {
    condition     = try(length(join(",", var.allowed_origins)) <= 2000, true)
    error_message = "allowed_origins must be at most 2,000 characters in all."
  }
}

variable "throttling_rate_limit" {
  description = "Requests per second that each route takes. null: the region's default quota, 10,000 or 2,500, which every API of the account shares."
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.throttling_rate_limit, 1) >= 1
    error_message = "throttling_rate_limit must be at least 1."
  }
}

variable "throttling_burst_limit" {
  description = "Requests that each route takes at once above the rate. null: the region's default burst quota, 5,000 or 1,250."
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.throttling_burst_limit, 1) >= 1 && floor(coalesce(var.throttling_burst_limit, 1)) == coalesce(var.throttling_burst_limit, 1)
    error_message = "throttling_burst_limit must be a whole number of at least 1."
  }
}

variable "execute_api_url" {
  description = "Only for endpoints other than AWS: address of a deployed API with the placeholder {api_id}, such as http://127.0.0.1:4566/_aws/execute-api/{api_id}. The stage is appended."
  type        = string
  default     = null

  validation {
    condition = var.execute_api_url == null || (
      can(regex("^https?://[^\\s?#]+[^\\s?#/]$", var.execute_api_url)) && strcontains(coalesce(var.execute_api_url, "-"), "{api_id}")
    )
    error_message = "execute_api_url must be an http:// or https:// address that contains {api_id} and has no trailing slash and no query."
  }
}
