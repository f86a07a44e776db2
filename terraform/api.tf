locals {
  # Route key -> the function that answers it. `replies` sends the function's answer back to the client.
  routes = {
    "$connect"    = { function = "connect", replies = false }
    "$disconnect" = { function = "disconnect", replies = false }
    "$default"    = { function = "default", replies = true }
  }
  replying_routes = { for key, route in local.routes : key => route if route.replies }

  execute_api_url = (
    var.execute_api_url == null
    ? replace(aws_apigatewayv2_api.this.api_endpoint, "/^ws/", "http")
    : replace(var.execute_api_url, "{api_id}", aws_apigatewayv2_api.this.id)
  )
  default_endpoint = "${local.execute_api_url}/${var.stage_name}"

  # A closed default endpoint answers 403 to posts too. At the custom domain, the mapping names the stage, and the path
  # does not. The ARN that policies name is the same for both addresses.
  closes_default_endpoint = try(var.custom_domain.close_default_endpoint, false)
  connections_endpoint    = local.closes_default_endpoint ? "https://${var.custom_domain.domain_name}" : local.default_endpoint
  stage_execution_arn     = "${aws_apigatewayv2_api.this.execution_arn}/${var.stage_name}"

  # Requests per second, and the burst above them, that an account may make in a region over all of its APIs, posts to
  # connections included, until AWS raises it [Amazon API Gateway quotas,
  # https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html, read on 2026-11-25].
  default_quota = { rate = 10000, burst = 5000 }
  lower_quota   = { rate = 2500, burst = 1250 }
  lower_quota_regions = [
    "af-south-1",     # Cape Town
    "ap-south-2",     # Hyderabad
    "ap-southeast-3", # Jakarta
    "ap-southeast-4", # Melbourne
    "ap-southeast-5", # Malaysia
    "ap-southeast-7", # Thailand
    "ca-west-1",      # Calgary
    "eu-central-2",   # Zurich
    "eu-south-1",     # Milan
    "eu-south-2",     # Spain
    "il-central-1",   # Tel Aviv
    "me-central-1",   # UAE
    "mx-central-1",   # Mexico
  ]
  request_quota = contains(local.lower_quota_regions, local.region) ? local.lower_quota : local.default_quota

  # A broadcast leaves room for connects, client messages and the account's other APIs.
  default_post_rate  = local.request_quota.rate * 95 / 100
  default_post_burst = local.request_quota.burst * 90 / 100

  post_rate        = coalesce(var.post_rate, local.default_post_rate)
  post_burst       = coalesce(var.post_burst, local.default_post_burst)
  throttling_rate  = coalesce(var.throttling_rate_limit, local.request_quota.rate)
  throttling_burst = coalesce(var.throttling_burst_limit, local.request_quota.burst)

  # Whatever a deployment takes a copy of. Named one by one: a whole resource holds computed values, whose drift
  # would redeploy for nothing.
  deployed = {
    route_selection_expression   = aws_apigatewayv2_api.this.route_selection_expression
    disable_execute_api_endpoint = local.closes_default_endpoint
    routes = {
      for key, route in aws_apigatewayv2_route.this :
      key => [route.id, route.target, route.route_response_selection_expression]
    }
    integrations = {
      for key, integration in aws_apigatewayv2_integration.this :
      key => [integration.id, integration.integration_type, integration.integration_uri]
    }
    route_responses = { for key, response in aws_apigatewayv2_route_response.this : key => response.id }
  }
}

# A warning, not an error: AWS may have raised the quota of this account, which Terraform cannot read.
check "quota" {
  assert {
    condition = var.execute_api_url != null || (
      local.post_rate <= local.default_post_rate && local.post_burst <= local.default_post_burst &&
      local.throttling_rate <= local.request_quota.rate && local.throttling_burst <= local.request_quota.burst
    )
    error_message = "The default quota of API Gateway in ${local.region} is ${local.request_quota.rate} requests per second with a burst of ${local.request_quota.burst}, shared by all APIs of the account. Unless AWS has raised it for this account, set post_rate to at most ${local.default_post_rate}, post_burst to at most ${local.default_post_burst}, throttling_rate_limit to at most ${local.request_quota.rate} and throttling_burst_limit to at most ${local.request_quota.burst}, or leave them out."
  }
}

resource "aws_apigatewayv2_api" "this" {
  name                       = var.name_prefix
  description                = "Muster: broadcasts to connected clients, and their messages."
  protocol_type              = "WEBSOCKET"
  route_selection_expression = "$request.body.action"
  tags                       = var.tags

  # Takes effect with the next deployment, which comes after the functions' update.
  disable_execute_api_endpoint = local.closes_default_endpoint
}

resource "aws_apigatewayv2_integration" "this" {
  for_each = local.routes

  api_id             = aws_apigatewayv2_api.this.id
  integration_type   = "AWS_PROXY"
  integration_method = "POST"
  integration_uri    = module.function[each.value.function].invoke_arn
}

# Without a route response selection expression and a route response, AWS drops the function's reply.
resource "aws_apigatewayv2_route" "this" {
  for_each = local.routes

  api_id                              = aws_apigatewayv2_api.this.id
  route_key                           = each.key
  target                              = "integrations/${aws_apigatewayv2_integration.this[each.key].id}"
  route_response_selection_expression = each.value.replies ? "$default" : null
}

resource "aws_apigatewayv2_route_response" "this" {
  for_each = local.replying_routes

  api_id             = aws_apigatewayv2_api.this.id
  route_id           = aws_apigatewayv2_route.this[each.key].id
  route_response_key = "$default"
}

resource "aws_lambda_permission" "route" {
  for_each = local.routes

  statement_id_prefix = "WebSocketRoute-${replace(each.key, "/[^A-Za-z0-9_-]/", "")}-"
  action              = "lambda:InvokeFunction"
  function_name       = module.function[each.value.function].name
  qualifier           = module.function[each.value.function].alias
  principal           = "apigateway.amazonaws.com"
  source_arn          = "${local.stage_execution_arn}/${each.key}"

  # When snap_start changes, the old one serves until the new one does: publishing takes minutes.
  lifecycle {
    create_before_destroy = true
  }
}

# A stage serves what was deployed last: changes reach clients only through a new deployment.
resource "aws_apigatewayv2_deployment" "this" {
  api_id = aws_apigatewayv2_api.this.id

  triggers = {
    deployed = sha1(jsonencode(local.deployed))
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_cloudwatch_log_group" "access" {
  count = var.access_logs ? 1 : 0

  name              = "/aws/apigateway/${var.name_prefix}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}

# X-Ray is not offered on WebSocket stages: traces start in the functions.
resource "aws_apigatewayv2_stage" "this" {
  api_id        = aws_apigatewayv2_api.this.id
  name          = var.stage_name
  deployment_id = aws_apigatewayv2_deployment.this.id
  tags          = var.tags

  default_route_settings {
    throttling_rate_limit  = local.throttling_rate
    throttling_burst_limit = local.throttling_burst
    # Execution logs would hold the query string, and with it the token.
    logging_level      = "OFF"
    data_trace_enabled = false
  }

  dynamic "access_log_settings" {
    for_each = aws_cloudwatch_log_group.access

    content {
      destination_arn = access_log_settings.value.arn
      # No field here can carry the query string, a header or a body.
      format = jsonencode({
        requestId          = "$context.requestId"
        requestTime        = "$context.requestTime"
        connectionId       = "$context.connectionId"
        eventType          = "$context.eventType"
        routeKey           = "$context.routeKey"
        status             = "$context.status"
        error              = "$context.error.message"
        integrationStatus  = "$context.integration.status"
        integrationLatency = "$context.integrationLatency"
        sourceIp           = "$context.identity.sourceIp"
      })
    }
  }

  depends_on = [aws_lambda_permission.route]
}
