# What is watched: every alarm has somebody to tell and a page to read, and nothing is asked of what AWS alone has.
# tests/contract/test_monitoring.py reads the runs "aws" and "dashboard" for the metrics, the queries and the runbook.

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

variables {
  bundle_dir      = "./tests/bundle"
  execute_api_url = null
  name_prefix     = "north"
  jwt             = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
  alarm_actions   = ["arn:aws:sns:eu-west-1:123456789012:on-call"]
  tags            = { team = "any" }
}

run "aws" {
  command = plan

  assert {
    condition = toset([
      for key in concat(keys(aws_cloudwatch_metric_alarm.this), keys(aws_cloudwatch_metric_alarm.ratio)) : key
      ]) == toset(concat(
      [
        "broadcasts-failed", "partitions-unreached", "offline-failed", "connections-failed", "connections-refused",
        "messages-failed", "stale-keys", "gateway-errors", "client-errors", "broadcasts-slow", "undelivered", "offline-queue-age", "dead-letters", "undeliverable",
        "fanout-failures", "fanout-timeouts", "broadcast-throttled", "fanout-throttled",
      ],
      [for pair in setproduct(["accept", "connect", "default", "deliver", "offline"], ["errors", "throttles"]) : join("-", pair)],
    ))
    error_message = "Every way in which people are not told has its alarm."
  }

  assert {
    condition = alltrue([
      for alarm in concat(values(aws_cloudwatch_metric_alarm.this), values(aws_cloudwatch_metric_alarm.ratio)) :
      alarm.alarm_actions == toset(var.alarm_actions) && alarm.ok_actions == toset(var.alarm_actions) &&
      alarm.actions_enabled && startswith(alarm.alarm_name, "north-") && alarm.tags == tomap({ team = "any" })
    ])
    error_message = "Every alarm tells alarm_actions when it starts and when it ends, under the deployment's name."
  }

  assert {
    condition = {
      for key, alarm in aws_cloudwatch_metric_alarm.this : key => alarm.treat_missing_data
      if alarm.treat_missing_data != "notBreaching"
    } == { for key in ["dead-letters", "offline-queue-age", "undeliverable"] : key => "ignore" }
    error_message = "What has no data has not happened; a queue that reports nothing is as it was."
  }

  assert {
    condition = (
      one([for query in aws_cloudwatch_metric_alarm.ratio["undelivered"].metric_query : query.expression if query.return_data]) ==
      "IF(failed >= 10, 100 * failed / (delivered + gone + failed), 0)" &&
      aws_cloudwatch_metric_alarm.ratio["undelivered"].threshold == 10
    )
    error_message = "Undelivered is a share of the audience, and says nothing of a handful."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.this["offline-queue-age"].threshold == 302400
    error_message = "By default the offline queue's alarm leaves as much time as has passed: half of seven days."
  }

  assert {
    condition = (
      aws_cloudwatch_metric_alarm.this["client-errors"].threshold == 100 && aws_cloudwatch_metric_alarm.this["client-errors"].period == 300 &&
      aws_cloudwatch_metric_alarm.this["broadcasts-slow"].threshold == 60000 && aws_cloudwatch_metric_alarm.this["broadcasts-slow"].statistic == "Maximum"
    )
    error_message = "A hundred refusals of API Gateway's own in five minutes, and one broadcast of a minute, are too much by default."
  }

  assert {
    condition     = local.telemetry_environment.POWERTOOLS_SERVICE_NAME == "north"
    error_message = "A deployment's metrics, logs and traces carry its name."
  }

  assert {
    condition     = one(aws_xray_group.this).filter_expression == "annotation.Service = \"north\""
    error_message = "The traces of a deployment are a group."
  }

  assert {
    condition     = alltrue([for query in aws_cloudwatch_query_definition.this : length(query.log_group_names) == 6])
    error_message = "A saved query spans every function."
  }
}

run "dashboard" {
  command = plan

  override_resource {
    target          = aws_cloudwatch_metric_alarm.this
    override_during = plan
    values          = { arn = "arn:aws:cloudwatch:eu-west-1:123456789012:alarm:any" }
  }

  override_resource {
    target          = aws_cloudwatch_metric_alarm.ratio
    override_during = plan
    values          = { arn = "arn:aws:cloudwatch:eu-west-1:123456789012:alarm:any" }
  }

  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets) == 1 + length(local.graphs)
    error_message = "The dashboard shows the alarms and every graph."
  }

  assert {
    condition = (
      length(jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets[0].properties.alarms) ==
      length(local.metric_alarms) + length(local.ratio_alarms)
    )
    error_message = "The alarms come first, all of them."
  }
}

run "thresholds" {
  command = plan

  variables {
    message_retention_days = 30
    alarm_thresholds       = { undelivered_percent = 1, refused_percent = 100, offline_age_seconds = 600, client_errors = 5, broadcast_seconds = 2.5 }
  }

  assert {
    condition = (
      aws_cloudwatch_metric_alarm.ratio["undelivered"].threshold == 1 &&
      aws_cloudwatch_metric_alarm.ratio["connections-refused"].threshold == 100 &&
      aws_cloudwatch_metric_alarm.this["offline-queue-age"].threshold == 600 &&
      aws_cloudwatch_metric_alarm.this["client-errors"].threshold == 5 &&
      aws_cloudwatch_metric_alarm.this["broadcasts-slow"].threshold == 2500
    )
    error_message = "What depends on the people can be set."
  }
}

run "elsewhere" {
  command = plan

  variables {
    execute_api_url = "http://127.0.0.1:4566/_aws/execute-api/{api_id}"
  }

  assert {
    condition = (
      length(aws_cloudwatch_metric_alarm.ratio) == 0 &&
      length(aws_cloudwatch_query_definition.this) == 0 &&
      length(aws_xray_group.this) == 0 &&
      length(aws_cloudwatch_metric_alarm.this) == 0
    )
    error_message = "An emulator is asked for the dashboard, and no more."
  }
}

run "refused" {
  command = plan

  variables {
    alarm_actions    = ["arn:aws:sns:eu-west-1:123456789012:on-call.fifo"]
    alarm_thresholds = { undelivered_percent = 0, offline_age_seconds = 1209601 }
  }

  expect_failures = [var.alarm_actions, var.alarm_thresholds]
}

run "no_client_error_is_too_many" {
  command = plan

  variables {
    alarm_thresholds = { client_errors = 0 }
  }

  expect_failures = [var.alarm_thresholds]
}

run "no_broadcast_is_too_fast" {
  command = plan

  variables {
    alarm_thresholds = { broadcast_seconds = 0 }
  }

  expect_failures = [var.alarm_thresholds]
}

# X-Ray takes fewer signs than the rest.
run "tags_that_x_ray_refuses" {
  command = plan

  variables {
    tags = { team = "any", owner = "duty@example.org" }
  }

  assert {
    condition = (
      one(aws_xray_group.this).tags == tomap({ team = "any" }) &&
      aws_apigatewayv2_api.this.tags == tomap({ team = "any", owner = "duty@example.org" })
    )
    error_message = "Everything is tagged, the trace group as far as it can be."
  }
}
