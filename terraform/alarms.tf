locals {
  # An alarm fires when a metric reaches `threshold` within `minutes`. It fires at once, because what it counts was already
  # retried. `runbook` is its section in docs/operations.md. Missing data is not breaching, except for SQS queues: an SQS
  # queue reports nothing after six idle hours [SQS metrics], and then its alarm keeps its state.
  metric_alarms = merge(
    {
      broadcasts-failed = {
        summary    = "A broadcast failed: it may have reached no recipient."
        namespace  = "AWS/States"
        metric     = "ExecutionsFailed"
        dimensions = local.metric_dimensions.machines.broadcast
        threshold  = 1
      }
      partitions-unreached = {
        summary    = "Part of an audience was not posted to, after three attempts."
        namespace  = local.metrics_namespace
        metric     = "PartitionsUnreached"
        dimensions = local.metric_dimensions.muster
        threshold  = 1
      }
      offline-failed = {
        summary    = "SNS rejected notifications of users who were not reached."
        namespace  = local.metrics_namespace
        metric     = "OfflineFailed"
        dimensions = local.metric_dimensions.muster
        threshold  = 1
      }
      connections-failed = {
        summary    = "Clients with a valid token cannot connect because of an error."
        namespace  = local.metrics_namespace
        metric     = "ConnectionsFailed"
        dimensions = local.metric_dimensions.muster
        threshold  = 5
        minutes    = 5
      }
      # Keys are read every five minutes, and every 30 s after a failure: this is ten failures.
      stale-keys = {
        summary    = "The keys that verify tokens cannot be read; a new function instance has none."
        namespace  = local.metrics_namespace
        metric     = "StaleKeyAge"
        dimensions = local.metric_dimensions.muster
        statistic  = "Maximum"
        threshold  = 600
        minutes    = 5
      }
      messages-failed = {
        summary    = "Client messages, which may be alerts, are answered with a server error."
        namespace  = local.metrics_namespace
        metric     = "ClientMessagesFailed"
        dimensions = local.metric_dimensions.muster
        threshold  = 5
        minutes    = 5
      }
      gateway-errors = {
        summary    = "API Gateway cannot call a function: no client can connect, or no message is answered."
        namespace  = "AWS/ApiGateway"
        metric     = "ExecutionError"
        dimensions = local.metric_dimensions.api
        threshold  = 5
        minutes    = 5
      }
      client-errors = {
        summary    = "API Gateway itself rejects clients: they exceed a limit, or use another protocol."
        namespace  = "AWS/ApiGateway"
        metric     = "ClientError"
        dimensions = local.metric_dimensions.api
        threshold  = var.alarm_thresholds.client_errors
        minutes    = 5
      }
      broadcasts-slow = {
        summary    = "A broadcast took long: its last recipients got it late."
        namespace  = "AWS/States"
        metric     = "ExecutionTime" # ms
        dimensions = local.metric_dimensions.machines.broadcast
        statistic  = "Maximum"
        threshold  = 1000 * var.alarm_thresholds.broadcast_seconds
      }
      offline-queue-age = {
        summary    = "No consumer reads the SQS queue for offline users, and SQS will delete its messages."
        namespace  = "AWS/SQS"
        metric     = "ApproximateAgeOfOldestMessage"
        dimensions = local.metric_dimensions.queues.queue
        statistic  = "Maximum"
        threshold  = local.offline_queue_age_seconds
        minutes    = 5
        missing    = "ignore"
      }
      dead-letters = {
        summary    = "A consumer of the SQS queue for offline users failed five times to process a message."
        namespace  = "AWS/SQS"
        metric     = "ApproximateNumberOfMessagesVisible"
        dimensions = local.metric_dimensions.queues.dead_letters
        statistic  = "Maximum"
        threshold  = 1
        missing    = "ignore"
      }
      undeliverable = {
        summary    = "SNS could not deliver a notification about users who were not reached."
        namespace  = "AWS/SQS"
        metric     = "ApproximateNumberOfMessagesVisible"
        dimensions = local.metric_dimensions.queues.undeliverable
        statistic  = "Maximum"
        threshold  = 1
        missing    = "ignore"
      }
    },
    {
      # Three: the number of attempts after a crash.
      for name, dimensions in local.awaited_functions : "${name}-errors" => {
        runbook    = "function-errors"
        summary    = "Invocations of ${name} crash or time out. Rejected requests do not count."
        namespace  = "AWS/Lambda"
        metric     = "Errors"
        dimensions = dimensions
        threshold  = 3
        minutes    = 5
      }
    },
    {
      for name, dimensions in local.awaited_functions : "${name}-throttles" => {
        runbook    = "function-throttles"
        summary    = "Lambda throttles ${name}: a concurrency limit is reached."
        namespace  = "AWS/Lambda"
        metric     = "Throttles"
        dimensions = dimensions
        threshold  = 10
        minutes    = 5
      }
    },
    {
      # broadcast has no time-out, and what it pages for when it fails is above. One fanout that fails is repeated.
      for name, metric in {
        failures = "ExecutionsFailed"
        timeouts = "ExecutionsTimedOut"
      } :
      "fanout-${name}" => {
        runbook    = "fanout-failures"
        summary    = "Fan-outs fail: broadcasts are slow, and recipients may be skipped."
        namespace  = "AWS/States"
        metric     = metric
        dimensions = local.metric_dimensions.machines.fanout
        threshold  = 3
        minutes    = 5
      }
    },
    {
      for name, dimensions in local.metric_dimensions.machines : "${name}-throttled" => {
        runbook    = "machine-throttles"
        summary    = "Step Functions throttles ${name}: broadcasts are late."
        namespace  = "AWS/States"
        metric     = "ExecutionThrottled"
        dimensions = dimensions
        threshold  = 10
        minutes    = 5
      }
    },
  )

  # Nothing depends on disconnect: the next post or the ttl removes the row.
  awaited_functions = { for name, dimensions in local.metric_dimensions.functions : name => dimensions if name != "disconnect" }

  # Each is `threshold` percent or more of the sum of `of`, once `metric` itself counts `least` within five minutes. All
  # are written together, each time, which metric math needs: it has no value where one of its metrics has none.
  ratio_alarms = {
    undelivered = {
      summary   = "Many connections of an audience could not be posted to."
      metric    = "Failed"
      of        = ["Delivered", "Gone", "Failed"]
      least     = 10
      threshold = var.alarm_thresholds.undelivered_percent
    }
    connections-refused = {
      summary   = "Most clients are rejected: their tokens are invalid, or their users may not connect."
      metric    = "ConnectionsRefused"
      of        = ["ConnectionsOpened", "ConnectionsRefused", "ConnectionsFailed"]
      least     = 20
      threshold = var.alarm_thresholds.refused_percent
    }
  }

  offline_queue_age_seconds = coalesce(
    var.alarm_thresholds.offline_age_seconds,
    aws_sqs_queue.offline.message_retention_seconds / 2,
  )

  runbook = "See docs/operations.md#"
}

# MiniStack returns only a part of an alarm, which would be a change in every plan.
resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = { for name, alarm in local.metric_alarms : name => alarm if var.execute_api_url == null }

  alarm_name          = "${var.name_prefix}-${each.key}"
  alarm_description   = "${each.value.summary} ${local.runbook}${try(each.value.runbook, each.key)}"
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = { for index in range(0, length(each.value.dimensions), 2) : each.value.dimensions[index] => each.value.dimensions[index + 1] }
  statistic           = try(each.value.statistic, "Sum")
  period              = 60 * try(each.value.minutes, 1)
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = each.value.threshold
  treat_missing_data  = try(each.value.missing, "notBreaching")
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "ratio" {
  for_each = { for name, alarm in local.ratio_alarms : name => alarm if var.execute_api_url == null }

  alarm_name          = "${var.name_prefix}-${each.key}"
  alarm_description   = "${each.value.summary} ${local.runbook}${each.key}"
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = each.value.threshold
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags

  metric_query {
    id          = "percent"
    label       = "${each.value.metric}, percent"
    expression  = "IF(${lower(each.value.metric)} >= ${each.value.least}, 100 * ${lower(each.value.metric)} / (${lower(join(" + ", each.value.of))}), 0)"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = each.value.of

    content {
      id = lower(metric_query.value)

      metric {
        namespace   = local.metrics_namespace
        metric_name = metric_query.value
        dimensions  = { service = var.name_prefix }
        stat        = "Sum"
        period      = 300
      }
    }
  }
}
