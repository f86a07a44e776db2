locals {
  # Route key -> the function that handles it. With `replies`, its answer is sent to the client.
  routes = {
    "$connect"    = { function = "connect", replies = false }
    "$disconnect" = { function = "disconnect", replies = false }
    "$default"    = { function = "default", replies = true }
  }

  replying_routes = { for key, route in local.routes : key => route if route.replies }
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

  # When snap_start changes, the old version serves until the new one is published, which takes minutes.
  lifecycle {
    create_before_destroy = true
  }
}
