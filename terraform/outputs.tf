# ---- For clients ---------------------------------------------------------------------------------------------

output "websocket_url" {
  description = "Address that clients open, with their token."
  value       = var.custom_domain == null ? replace(local.default_endpoint, "/^http/", "ws") : "wss://${var.custom_domain.domain_name}"
  depends_on  = [aws_apigatewayv2_stage.this, aws_apigatewayv2_api_mapping.this, aws_route53_record.this]
}

output "custom_domain_target" {
  description = "What a DNS record of custom_domain.domain_name points at: a CNAME or alias to `name`, whose Route 53 zone is `zone_id`. Null without a custom domain."
  value = one([
    for domain in aws_apigatewayv2_domain_name.this :
    { name = domain.domain_name_configuration[0].target_domain_name, zone_id = domain.domain_name_configuration[0].hosted_zone_id }
  ])
}

output "jwt_secret_arn" {
  description = "Secret that signs tokens; null where tokens are verified by jwt.jwks_url."
  value       = local.jwt_secret_arn
}

output "jwt_algorithms" {
  description = "How a token may be signed."
  value       = var.jwt.algorithms
}

output "jwt_issuer" {
  description = "The `iss` that a token must have."
  value       = var.jwt.issuer
}

output "jwt_audience" {
  description = "The `aud` that a token must have."
  value       = var.jwt.audience
}

# ---- For services --------------------------------------------------------------------------------------------

output "broadcast_state_machine_arn" {
  description = "State machine that a service starts to broadcast."
  value       = aws_sfn_state_machine.this["broadcast"].arn
}

output "publisher_policy_json" {
  description = "IAM policy document that lets a service start broadcasts and follow them."
  value       = jsonencode(local.publisher_policy)
}

output "offline_topic_arn" {
  description = "Topic of everything that no open connection took."
  value       = aws_sns_topic.offline.arn
}

output "offline_queue_url" {
  description = "Queue subscribed to the offline topic."
  value       = aws_sqs_queue.offline.url
}

output "offline_queue_arn" {
  description = "Queue subscribed to the offline topic."
  value       = aws_sqs_queue.offline.arn
}

# ---- For operators -------------------------------------------------------------------------------------------

output "region" {
  description = "Region of everything here."
  value       = local.region
}

output "connections_endpoint" {
  description = "Endpoint of the API Gateway management API, which posts to and closes connections."
  value       = local.connections_endpoint
  depends_on  = [aws_apigatewayv2_stage.this, aws_apigatewayv2_api_mapping.this, aws_route53_record.this]
}

output "fanout_state_machine_arn" {
  description = "State machine that reaches one partition of an audience; broadcast starts it."
  value       = aws_sfn_state_machine.this["fanout"].arn
}

output "connections_table" {
  description = "Name of the table of open connections."
  value       = local.table_names.connections
}

output "users_table" {
  description = "Name of the table of users, which $connect reads."
  value       = local.table_names.users
}

output "messages_table" {
  description = "Name of the table of messages kept for resume."
  value       = local.table_names.messages
}

output "shelters_table" {
  description = "Name of the table of shelters."
  value       = local.table_names.shelters
}

output "function_names" {
  description = "Each function's name on Lambda."
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
  description = "Statements that the policy of kms_key_arn needs beside those of its administrators, as a policy document."
  value       = jsonencode(local.kms_key_policy)
}
