# The WebSocket API: one map makes the routes, replies reach clients, and no token reaches a log.

# Not mock_provider: Terraform cannot mock an ephemeral resource. The real one plans offline once it need not ask who
# calls, nor for a password (hence a secret below).
provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

override_resource {
  target          = aws_apigatewayv2_api.this
  override_during = plan
  values = {
    id            = "a1b2c3d4e5"
    api_endpoint  = "wss://a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com"
    execution_arn = "arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5"
  }
}

override_resource {
  target          = aws_cloudwatch_log_group.access
  override_during = plan
  values          = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/apigateway/muster" }
}

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  jwt             = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
}

run "routes" {
  command = plan

  assert {
    condition     = { for key, route in local.routes : key => route.function } == { "$connect" = "connect", "$default" = "default", "$disconnect" = "disconnect" }
    error_message = "Three routes, each answered by the function of its name."
  }

  assert {
    condition = alltrue([
      for made in [aws_apigatewayv2_route.this, aws_apigatewayv2_integration.this, aws_lambda_permission.route] :
      keys(made) == keys(local.routes)
    ])
    error_message = "An entry of local.routes is a route, its integration and its permission."
  }

  assert {
    condition     = alltrue([for integration in aws_apigatewayv2_integration.this : integration.integration_type == "AWS_PROXY"])
    error_message = "Functions get the whole event."
  }

  assert {
    condition = { for key, permission in aws_lambda_permission.route : key => permission.source_arn } == {
      for key in keys(local.routes) : key => "arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5/live/${key}"
    }
    error_message = "Only its own route of this API and stage may invoke a function."
  }

  assert {
    condition = (
      keys(aws_apigatewayv2_route_response.this) == ["$default"] &&
      { for key, route in aws_apigatewayv2_route.this : key => route.route_response_selection_expression if route.route_response_selection_expression != null } == { "$default" = "$default" }
    )
    error_message = "$default alone replies: AWS sends a reply only with a selection expression and a route response."
  }

  assert {
    condition = (
      keys(local.deployed.routes) == keys(local.routes) &&
      keys(local.deployed.integrations) == keys(local.routes) &&
      keys(local.deployed.route_responses) == ["$default"]
    )
    error_message = "Every route, integration and route response triggers a deployment."
  }
}

run "stage" {
  command = plan

  variables {
    access_logs            = true
    throttling_rate_limit  = 300
    throttling_burst_limit = 200
  }

  assert {
    condition = (
      aws_apigatewayv2_stage.this.default_route_settings[0].throttling_rate_limit == 300 &&
      aws_apigatewayv2_stage.this.default_route_settings[0].throttling_burst_limit == 200
    )
    error_message = "The stage throttles as the variables say."
  }

  assert {
    condition = (
      aws_apigatewayv2_stage.this.default_route_settings[0].logging_level == "OFF" &&
      !aws_apigatewayv2_stage.this.default_route_settings[0].data_trace_enabled
    )
    error_message = "Execution logs hold the query string, and with it the token."
  }

  assert {
    condition = toset(values(jsondecode(aws_apigatewayv2_stage.this.access_log_settings[0].format))) == toset([
      "$context.requestId", "$context.requestTime", "$context.connectionId", "$context.eventType", "$context.routeKey",
      "$context.status", "$context.error.message", "$context.integration.status", "$context.integrationLatency",
      "$context.identity.sourceIp",
    ])
    error_message = "Access logs hold nothing that could carry a token."
  }
}

run "quota_of_most_regions" {
  command = plan

  assert {
    condition = (
      [local.post_rate, local.post_burst] == [9500, 4500] &&
      [local.state_machines.broadcast.variables.post_rate, local.state_machines.broadcast.variables.post_burst] == [9500, 4500]
    )
    error_message = "A broadcast keeps 5% of the rate and 10% of the burst free."
  }

  assert {
    condition = (
      aws_apigatewayv2_stage.this.default_route_settings[0].throttling_rate_limit == 10000 &&
      aws_apigatewayv2_stage.this.default_route_settings[0].throttling_burst_limit == 5000
    )
    error_message = "The stage takes what the account may."
  }
}

run "quota_of_a_lower_region" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { id = "eu-south-1" }
  }

  variables {
    jwt = { secret = { arn = "arn:aws:secretsmanager:eu-south-1:123456789012:secret:jwt-AbCdEf" } }
  }

  assert {
    condition     = [local.state_machines.broadcast.variables.post_rate, local.state_machines.broadcast.variables.post_burst] == [2375, 1125]
    error_message = "A broadcast stays under the region's own quota."
  }

  assert {
    condition = (
      aws_apigatewayv2_stage.this.default_route_settings[0].throttling_rate_limit == 2500 &&
      aws_apigatewayv2_stage.this.default_route_settings[0].throttling_burst_limit == 1250
    )
    error_message = "So does the stage."
  }
}

run "more_posts_than_a_lower_region_takes" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { id = "ap-southeast-3" }
  }

  variables {
    jwt       = { secret = { arn = "arn:aws:secretsmanager:ap-southeast-3:123456789012:secret:jwt-AbCdEf" } }
    post_rate = 9500
  }

  expect_failures = [check.quota]
}

run "posts_without_headroom" {
  command = plan

  variables {
    post_rate = 9501
  }

  expect_failures = [check.quota]
}

run "a_burst_without_headroom" {
  command = plan

  variables {
    post_burst = 4501
  }

  expect_failures = [check.quota]
}

run "a_stage_that_takes_more_than_the_account" {
  command = plan

  variables {
    throttling_rate_limit = 10001
  }

  expect_failures = [check.quota]
}

run "a_stage_with_more_burst_than_the_account" {
  command = plan

  variables {
    throttling_burst_limit = 5001
  }

  expect_failures = [check.quota]
}

# What another endpoint takes is not AWS's to say.
run "no_quota_elsewhere" {
  command = plan

  variables {
    execute_api_url = "http://127.0.0.1:4566/_aws/execute-api/{api_id}"
    post_rate       = 1000000
    post_burst      = 1000000
  }

  assert {
    condition     = local.post_rate == 1000000
    error_message = "A rate that is given is used."
  }
}

run "no_access_logs" {
  command = plan

  assert {
    condition     = length(aws_apigatewayv2_stage.this.access_log_settings) == 0 && length(aws_cloudwatch_log_group.access) == 0
    error_message = "Access logs are off until they are asked for."
  }
}

run "addresses_on_aws" {
  command = plan

  assert {
    condition     = output.websocket_url == "wss://a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com/live"
    error_message = "Clients open the API's own address."
  }

  assert {
    condition = (
      output.connections_endpoint == "https://a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com/live" &&
      local.functions.deliver.environment.CONNECTIONS_ENDPOINT == output.connections_endpoint &&
      local.functions.default.environment.CONNECTIONS_ENDPOINT == output.connections_endpoint
    )
    error_message = "Functions post to the API's own address."
  }
}

run "addresses_elsewhere" {
  command = plan

  variables {
    execute_api_url = "http://127.0.0.1:4566/_aws/execute-api/{api_id}"
    stage_name      = "try"
  }

  assert {
    condition     = output.websocket_url == "ws://127.0.0.1:4566/_aws/execute-api/a1b2c3d4e5/try"
    error_message = "execute_api_url decides the address that clients open."
  }

  assert {
    condition     = output.connections_endpoint == "http://127.0.0.1:4566/_aws/execute-api/a1b2c3d4e5/try"
    error_message = "execute_api_url decides the address that functions post to."
  }
}

run "no_custom_domain" {
  command = plan

  assert {
    condition = (
      length(aws_apigatewayv2_domain_name.this) == 0 && length(aws_apigatewayv2_api_mapping.this) == 0 &&
      length(aws_route53_record.this) == 0 && output.custom_domain_target == null
    )
    error_message = "Clients open the API's own address until a domain is given."
  }

  assert {
    condition     = aws_apigatewayv2_api.this.disable_execute_api_endpoint == false
    error_message = "Without a custom domain, the default endpoint is the only one."
  }
}

run "custom_domain" {
  command = plan

  variables {
    custom_domain = {
      domain_name     = "live.example.org"
      certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678-1234-1234-1234-123456789012"
      zone            = { id = "Z0123456789ABC" }
    }
  }

  override_resource {
    target          = aws_apigatewayv2_domain_name.this
    override_during = plan
    values = {
      id = "live.example.org"
    }
  }

  assert {
    condition = (
      aws_apigatewayv2_domain_name.this[0].domain_name_configuration[0].security_policy == "TLS_1_2" &&
      aws_apigatewayv2_domain_name.this[0].domain_name_configuration[0].endpoint_type == "REGIONAL"
    )
    error_message = "The domain takes TLS 1.2 or later; WebSocket APIs know regional endpoints only."
  }

  assert {
    condition = (
      aws_apigatewayv2_api_mapping.this[0].domain_name == "live.example.org" &&
      aws_apigatewayv2_api_mapping.this[0].api_id == "a1b2c3d4e5" &&
      aws_apigatewayv2_api_mapping.this[0].api_mapping_key == null
    )
    error_message = "The whole domain is the stage: its name is not part of the address."
  }

  assert {
    condition = (
      aws_route53_record.this[0].name == "live.example.org" && aws_route53_record.this[0].type == "A" &&
      aws_route53_record.this[0].zone_id == "Z0123456789ABC"
    )
    error_message = "The record is made in the zone that is given."
  }

  assert {
    condition     = output.websocket_url == "wss://live.example.org"
    error_message = "Clients open the custom domain."
  }

  assert {
    condition     = output.connections_endpoint == "https://a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com/live"
    error_message = "Functions post to the API's own address, whatever becomes of the domain."
  }

  assert {
    condition     = aws_apigatewayv2_api.this.disable_execute_api_endpoint == false && local.deployed.disable_execute_api_endpoint == false
    error_message = "The default endpoint stays open until it is closed by name."
  }
}

run "custom_domain_with_the_default_endpoint_closed" {
  command = plan

  variables {
    custom_domain = {
      domain_name     = "live.example.org"
      certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678-1234-1234-1234-123456789012"

      close_default_endpoint = true
    }
  }

  assert {
    condition     = aws_apigatewayv2_api.this.disable_execute_api_endpoint == true && local.deployed.disable_execute_api_endpoint == true
    error_message = "The default endpoint is closed, and the change is deployed: without a deployment it has no effect."
  }

  assert {
    condition = (
      output.connections_endpoint == "https://live.example.org" &&
      local.functions.deliver.environment.CONNECTIONS_ENDPOINT == output.connections_endpoint &&
      local.functions.default.environment.CONNECTIONS_ENDPOINT == output.connections_endpoint
    )
    error_message = "Functions post to the custom domain, without the stage: the closed endpoint answers 403."
  }

  assert {
    condition     = output.websocket_url == "wss://live.example.org"
    error_message = "Clients open the custom domain."
  }

  assert {
    condition = (
      one(local.functions.deliver.statements[*].resources) == ["arn:aws:execute-api:eu-west-1:123456789012:a1b2c3d4e5/live/POST/@connections/*"]
    )
    error_message = "Policies name the API and its stage, at whichever address they are called."
  }
}

run "custom_domain_with_dns_elsewhere" {
  command = plan

  variables {
    custom_domain = {
      domain_name     = "live.example.org"
      certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678-1234-1234-1234-123456789012"
    }
  }

  assert {
    condition     = length(aws_apigatewayv2_domain_name.this) == 1 && length(aws_route53_record.this) == 0
    error_message = "Without a zone, the record is the user's."
  }
}

run "custom_domain_with_a_certificate_of_another_region" {
  command = plan

  variables {
    custom_domain = {
      domain_name     = "live.example.org"
      certificate_arn = "arn:aws:acm:us-east-1:123456789012:certificate/12345678-1234-1234-1234-123456789012"
    }
  }

  expect_failures = [aws_apigatewayv2_domain_name.this]
}
