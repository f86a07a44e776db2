locals {
  execute_api_url = (
    var.execute_api_url == null
    ? replace(aws_apigatewayv2_api.this.api_endpoint, "/^ws/", "http")
    : replace(var.execute_api_url, "{api_id}", aws_apigatewayv2_api.this.id)
  )

  default_endpoint = "${local.execute_api_url}/${var.stage_name}"

  # A closed default endpoint answers 403 to posts too. At the custom domain, the mapping names the stage, and the path
  # does not. The ARN that policies name is the same for both addresses.
  closes_default_endpoint = try(var.custom_domain.close_default_endpoint, false)

  connections_endpoint = local.closes_default_endpoint ? "https://${var.custom_domain.domain_name}" : local.default_endpoint

  stage_execution_arn = "${aws_apigatewayv2_api.this.execution_arn}/${var.stage_name}"

  # What a deployment copies. Each attribute is named: a whole resource contains computed values, whose drift would
  # cause needless deployments.
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

# A stage serves its last deployment, so changes need a new one.
resource "aws_apigatewayv2_deployment" "this" {
  api_id = aws_apigatewayv2_api.this.id

  triggers = {
    deployed = sha1(jsonencode(local.deployed))
  }

  lifecycle {
    create_before_destroy = true
  }
}

# WebSocket stages do not support X-Ray: traces start in the functions.
resource "aws_apigatewayv2_stage" "this" {
  api_id        = aws_apigatewayv2_api.this.id
  name          = var.stage_name
  deployment_id = aws_apigatewayv2_deployment.this.id
  tags          = var.tags

  default_route_settings {
    throttling_rate_limit  = local.throttling_rate
    throttling_burst_limit = local.throttling_burst
    # Execution logs would contain the query string, and with it the token.
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

resource "aws_cloudwatch_log_group" "access" {
  count = var.access_logs ? 1 : 0

  name              = "/aws/apigateway/${var.name_prefix}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}
