variable "custom_domain" {
  description = <<-EOT
    Domain name at which clients connect: domain_name, such as live.example.org, and certificate_arn, an ACM certificate
    for it in the API's region. With zone, its Route 53 zone, the module creates the record too. Without zone, point a
    record at the output custom_domain_target. The default endpoint (execute-api) stays open, and functions post there.
    With close_default_endpoint it answers 403 to clients and posts, and functions post to the custom domain: set it in
    a later apply, when clients connect at the domain.
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
    error_message = "custom_domain is for AWS only, and execute_api_url names another endpoint."
  }
}
