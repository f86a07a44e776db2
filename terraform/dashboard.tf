locals {
  metrics_namespace = "Muster"

  # The dimensions of this deployment's metrics by service, as alternating names and values. The set must be exact: with
  # one too many or too few, CloudWatch shows nothing.
  metric_dimensions = {
    muster    = ["service", var.name_prefix]
    api       = ["ApiId", aws_apigatewayv2_api.this.id, "Stage", var.stage_name]
    topic     = ["TopicName", aws_sns_topic.offline.name]
    functions = { for name, function in module.function : name => ["FunctionName", function.name] }
    machines  = { for name, arn in local.state_machine_arns : name => ["StateMachineArn", arn] }
    queues    = { for key, name in local.offline_queue_names : key => ["QueueName", name] }
    tables    = { for name, table in local.table_names : name => ["TableName", table] }
    indexes = {
      for index in keys(local.tables.connections.indexes) :
      index => ["TableName", local.table_names.connections, "GlobalSecondaryIndexName", index]
    }
  }

  # Title -> graph. `metrics` are [namespace, name, dimensions, overrides]; `stat` applies to all of them.
  graphs = [
    {
      title = "Connections"
      stat  = "Sum"
      metrics = [
        for name in ["ConnectionsOpened", "ConnectionsClosed", "ConnectionsRefused", "ConnectionsFailed"] :
        [local.metrics_namespace, name, local.metric_dimensions.muster, {}]
      ]
    },
    {
      title = "Age of keys that cannot be read again, s"
      stat  = "Maximum"
      metrics = [
        [local.metrics_namespace, "StaleKeyAge", local.metric_dimensions.muster, {}]
      ]
    },
    {
      title = "Client messages"
      stat  = "Sum"
      metrics = [
        for name in ["ClientMessages", "ClientMessagesRefused", "ClientMessagesFailed"] :
        [local.metrics_namespace, name, local.metric_dimensions.muster, {}]
      ]
    },
    {
      title = "API Gateway"
      stat  = "Sum"
      metrics = [
        for name in ["ConnectCount", "MessageCount", "ClientError", "IntegrationError", "ExecutionError"] :
        ["AWS/ApiGateway", name, local.metric_dimensions.api, {}]
      ]
    },
    {
      title = "Broadcasts"
      stat  = "Sum"
      metrics = concat(
        [
          for name in ["ExecutionsStarted", "ExecutionsSucceeded", "ExecutionsFailed"] :
          ["AWS/States", name, local.metric_dimensions.machines.broadcast, {}]
        ],
        [
          for name in ["BroadcastsAccepted", "BroadcastsRefused"] :
          [local.metrics_namespace, name, local.metric_dimensions.muster, {}]
        ],
      )
    },
    {
      title = "Connections reached"
      stat  = "Sum"
      metrics = [
        for name in ["Delivered", "Gone", "Failed"] :
        [local.metrics_namespace, name, local.metric_dimensions.muster, {}]
      ]
    },
    {
      title = "Posts that met the quota, or were repeated"
      stat  = "Sum"
      metrics = [
        for name in ["Throttled", "Retries"] : [local.metrics_namespace, name, local.metric_dimensions.muster, {}]
      ]
    },
    {
      title = "Users notified by SNS, and partitions not reached"
      stat  = "Sum"
      metrics = [
        for name in ["Offline", "OfflineFailed", "PartitionsUnreached"] :
        [local.metrics_namespace, name, local.metric_dimensions.muster, {}]
      ]
    },
    {
      title = "A batch, ms"
      stat  = "p50"
      metrics = [
        for stat in ["p50", "p95", "p99"] :
        [local.metrics_namespace, "DeliveryLatency", local.metric_dimensions.muster, { stat = stat, label = stat }]
      ]
    },
    {
      title = "A broadcast, ms"
      stat  = "p50"
      metrics = [
        for stat in ["p50", "p95", "p99"] :
        ["AWS/States", "ExecutionTime", local.metric_dimensions.machines.broadcast, { stat = stat, label = stat }]
      ]
    },
    {
      title = "State machines"
      stat  = "Sum"
      metrics = concat([
        for machine, dimensions in local.metric_dimensions.machines : [
          for name in ["ExecutionsFailed", "ExecutionsTimedOut", "ExecutionThrottled"] :
          ["AWS/States", name, dimensions, { label = "${machine} ${name}" }]
        ]
      ]...)
    },
    {
      title = "Lambda errors"
      stat  = "Sum"
      metrics = [
        for name, dimensions in local.metric_dimensions.functions :
        ["AWS/Lambda", "Errors", dimensions, { label = name }]
      ]
    },
    {
      title = "Lambda throttles"
      stat  = "Sum"
      metrics = [
        for name, dimensions in local.metric_dimensions.functions :
        ["AWS/Lambda", "Throttles", dimensions, { label = name }]
      ]
    },
    {
      title = "Lambda duration, p99 ms"
      stat  = "p99"
      metrics = [
        for name, dimensions in local.metric_dimensions.functions :
        ["AWS/Lambda", "Duration", dimensions, { label = name }]
      ]
    },
    {
      title = "API Gateway to Lambda, ms"
      stat  = "p50"
      metrics = [
        for stat in ["p50", "p95", "p99"] :
        ["AWS/ApiGateway", "IntegrationLatency", local.metric_dimensions.api, { stat = stat, label = stat }]
      ]
    },
    {
      title = "DynamoDB throttles"
      stat  = "Sum"
      metrics = concat([
        for name, dimensions in merge(local.metric_dimensions.tables, local.metric_dimensions.indexes) : [
          for direction in ["Read", "Write"] :
          ["AWS/DynamoDB", "${direction}ThrottleEvents", dimensions, { label = "${name} ${direction}" }]
        ]
      ]...)
    },
    {
      title = "Messages in the queues"
      stat  = "Maximum"
      metrics = [
        for key, dimensions in local.metric_dimensions.queues :
        ["AWS/SQS", "ApproximateNumberOfMessagesVisible", dimensions, { label = key }]
      ]
    },
    {
      title = "Oldest message, s"
      stat  = "Maximum"
      metrics = [
        for key, dimensions in local.metric_dimensions.queues :
        ["AWS/SQS", "ApproximateAgeOfOldestMessage", dimensions, { label = key }]
      ]
    },
    {
      title = "Offline topic"
      stat  = "Sum"
      metrics = [
        for name in ["NumberOfMessagesPublished", "NumberOfNotificationsDelivered", "NumberOfNotificationsFailed"] :
        ["AWS/SNS", name, local.metric_dimensions.topic, {}]
      ]
    },
  ]
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name_prefix
  dashboard_body = jsonencode({
    widgets = concat(
      [{
        type   = "alarm"
        width  = 24
        height = 3
        x      = 0
        y      = 0
        properties = {
          title  = "Alarms"
          alarms = [for alarm in concat(values(aws_cloudwatch_metric_alarm.this), values(aws_cloudwatch_metric_alarm.ratio)) : alarm.arn]
        }
      }],
      # Three graphs a row: a dashboard has 24 columns.
      [for index, graph in local.graphs : {
        type   = "metric"
        width  = 8
        height = 6
        x      = index % 3 * 8
        y      = 3 + floor(index / 3) * 6
        properties = {
          title   = graph.title
          region  = local.region
          period  = 60
          stat    = graph.stat
          metrics = [for metric in graph.metrics : concat([metric[0], metric[1]], metric[2], [metric[3]])]
        }
      }],
    )
  })
}
