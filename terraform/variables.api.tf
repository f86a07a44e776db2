variable "stage_name" {
  description = "Stage of the WebSocket API: the last part of its address."
  type        = string
  default     = "live"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,128}$", var.stage_name))
    error_message = "stage_name must be 1 to 128 letters, digits, hyphens and underscores."
  }
}

variable "allowed_origins" {
  description = "Sites whose web pages may connect, such as https://app.example.org, and web views of apps, such as capacitor://localhost. An empty list allows every site. Clients other than browsers send no Origin header: only their token is checked."
  type        = list(string)
  default     = []
  nullable    = false

  # The comparison is exact, and browsers write an Origin in lower case, without default port or path.
  validation {
    condition = alltrue([
      for origin in var.allowed_origins :
      can(regex("^[a-z][a-z0-9+.-]*://[a-z0-9.-]*[a-z0-9](:\\d{1,5})?$", origin)) &&
      !can(regex("^(https://.*:443|http://.*:80)$", origin)) &&
      (!can(regex("^http://", origin)) || can(regex("^http://(localhost|127\\.0\\.0\\.1)(:\\d+)?$", origin)))
    ])
    error_message = "allowed_origins must be written as browsers do, https://host or https://host:port in lower case, or the web view of an app, such as capacitor://localhost, without a path, a trailing slash, a * or the default port (http:// for localhost and 127.0.0.1 only)."
  }

  # All environment variables of a function may take 4 KB [Lambda quotas].
  validation {
    condition     = try(length(join(",", var.allowed_origins)) <= 2000, true)
    error_message = "allowed_origins must be at most 2,000 characters in all."
  }
}

variable "throttling_rate_limit" {
  description = "Requests per second that each route accepts. null: the region's default quota, 10,000 or 2,500, which every API of the account shares."
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.throttling_rate_limit, 1) >= 1
    error_message = "throttling_rate_limit must be at least 1."
  }
}

variable "throttling_burst_limit" {
  description = "Requests that each route accepts at once above the rate. null: the region's default burst quota, 5,000 or 1,250."
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
