# ---- For clients ---------------------------------------------------------------------------------------------

output "websocket_url" {
  description = "WebSocket URL for clients; they also send their token."
  value       = var.custom_domain == null ? replace(local.default_endpoint, "/^http/", "ws") : "wss://${var.custom_domain.domain_name}"
  depends_on  = [aws_apigatewayv2_stage.this, aws_apigatewayv2_api_mapping.this, aws_route53_record.this]
}

output "custom_domain_target" {
  description = "Target of the DNS record of custom_domain.domain_name: a CNAME or alias to `name`, whose Route 53 zone is `zone_id`. Null without a custom domain."
  value = one([
    for domain in aws_apigatewayv2_domain_name.this :
    { name = domain.domain_name_configuration[0].target_domain_name, zone_id = domain.domain_name_configuration[0].hosted_zone_id }
  ])
}

output "jwt_secret_arn" {
  description = "Secret that signs tokens; null if jwt.jwks_url verifies tokens."
  value       = local.jwt_secret_arn
}

output "jwt_algorithms" {
  description = "Allowed algorithms of a token's signature."
  value       = var.jwt.algorithms
}

output "jwt_issuer" {
  description = "Required `iss` of a token."
  value       = var.jwt.issuer
}

output "jwt_audience" {
  description = "Required `aud` of a token."
  value       = var.jwt.audience
}

# ---- For services --------------------------------------------------------------------------------------------

output "broadcast_state_machine_arn" {
  description = "State machine that a service starts to send a broadcast."
  value       = aws_sfn_state_machine.this["broadcast"].arn
}

output "publisher_policy_json" {
  description = "IAM policy document that lets a service start broadcasts and follow them."
  value       = jsonencode(local.publisher_policy)
}

output "offline_topic_arn" {
  description = "SNS topic that notifies offline users."
  value       = aws_sns_topic.offline.arn
}

output "offline_queue_url" {
  description = "URL of the SQS queue that is subscribed to the offline topic."
  value       = aws_sqs_queue.offline.url
}

output "offline_queue_arn" {
  description = "ARN of the SQS queue that is subscribed to the offline topic."
  value       = aws_sqs_queue.offline.arn
}

# ---- For operators -------------------------------------------------------------------------------------------

output "region" {
  description = "Region of the deployment."
  value       = local.region
}

output "connections_endpoint" {
  description = "Endpoint of the API Gateway management API, to post to connections and to close them."
  value       = local.connections_endpoint
  depends_on  = [aws_apigatewayv2_stage.this, aws_apigatewayv2_api_mapping.this, aws_route53_record.this]
}

output "fanout_state_machine_arn" {
  description = "State machine that delivers to one partition of an audience; broadcast starts it."
  value       = aws_sfn_state_machine.this["fanout"].arn
}

output "connections_table" {
  description = "Name of the connections table."
  value       = local.table_names.connections
}

output "users_table" {
  description = "Name of the users table, which $connect reads."
  value       = local.table_names.users
}

output "messages_table" {
  description = "Name of the messages table, which resume reads."
  value       = local.table_names.messages
}

output "shelters_table" {
  description = "Name of the shelters table."
  value       = local.table_names.shelters
}

output "function_names" {
  description = "Lambda name of each function."
  value       = { for name, function in module.function : name => function.name }
}

output "log_groups" {
  description = "Log group of each function and of each state machine."
  value = merge(
    { for name, function in module.function : name => function.log_group },
    { for name, group in aws_cloudwatch_log_group.state_machine : name => group.name },
  )
}

output "kms_key_policy_json" {
  description = "Policy document with the statements that the key policy of kms_key_arn needs, in addition to those of its administrators."
  value       = jsonencode(local.kms_key_policy)
}
