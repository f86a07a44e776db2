locals {
  # Title -> query for troubleshooting. The fields are those that functions/ log.
  queries = {
    # Replace the id. It is in the receipt, the `ack` and the client's message.
    "a broadcast by its id" = <<-EOT
      fields @timestamp, function_name, level, message, delivered, gone, failed, retries, offline, offlineFailed, milliseconds
      | filter messageId = "00000000-0000-7000-8000-000000000000"
      | sort @timestamp asc
      | limit 1000
    EOT
    "slowest batches"       = <<-EOT
      fields @timestamp, messageId, milliseconds, delivered, gone, failed, retries, function_request_id
      | filter message = "batch posted"
      | sort milliseconds desc
      | limit 50
    EOT
    "refusals at connect"   = <<-EOT
      filter message = "connection refused"
      | stats count(*) as refusals by reason, bin(5m) as time
      | sort time desc, refusals desc
    EOT
    # A function that runs out of time or memory logs no JSON, only Lambda's own line.
    "errors" = <<-EOT
      fields @timestamp, function_name, message, reason, exception_name, connectionId, messageId, function_request_id, @message
      | filter level in ["ERROR", "CRITICAL"] or @message like /Task timed out|Runtime exited|Runtime.ExitError/
      | sort @timestamp desc
      | limit 200
    EOT
  }
}

# MiniStack supports neither saved queries nor X-Ray.
resource "aws_cloudwatch_query_definition" "this" {
  for_each = var.execute_api_url == null ? local.queries : {}

  # A slash creates a folder in the console.
  name            = "${var.name_prefix}/${each.key}"
  query_string    = each.value
  log_group_names = [for function in module.function : function.log_group]
}

# The traces of all functions of this deployment: Powertools adds its service name to each.
resource "aws_xray_group" "this" {
  count = var.execute_api_url == null ? 1 : 0

  group_name        = var.name_prefix
  filter_expression = "annotation.Service = \"${var.name_prefix}\""

  # X-Ray takes no @, and 255 characters where others take 256 [X-Ray API, Tag]: what it would refuse, this group goes without.
  tags = { for key, value in var.tags : key => value if !strcontains("${key}${value}", "@") && length(value) <= 255 }

  lifecycle {
    precondition {
      condition = alltrue([
        for key, value in data.aws_default_tags.current.tags : !strcontains("${key}${value}", "@") && length(value) <= 255
      ])
      error_message = "The provider's default_tags: X-Ray rejects ${join(", ", [
        for key, value in data.aws_default_tags.current.tags : jsonencode(key)
        if strcontains("${key}${value}", "@") || length(value) > 255
      ])}, because of an @ or of more than 255 characters. Set these tags by the variable tags, which the X-Ray group leaves out."
    }
  }
}
