output "name" {
  description = "Name of the function."
  value       = aws_lambda_function.this.function_name
}

output "alias" {
  description = "Name of the alias that callers invoke; null without SnapStart, where they invoke the function itself."
  value       = one(aws_lambda_alias.live[*].name)
}

output "arn" {
  description = "ARN that callers invoke: of the alias with SnapStart, otherwise of the function without a version."
  value       = var.snap_start ? aws_lambda_alias.live[0].arn : aws_lambda_function.this.arn
}

output "invoke_arn" {
  description = "ARN that API Gateway uses to invoke it."
  value       = var.snap_start ? aws_lambda_alias.live[0].invoke_arn : aws_lambda_function.this.invoke_arn
}

output "log_group" {
  description = "Name of the function's log group."
  value       = aws_cloudwatch_log_group.this.name
}

output "policy" {
  description = "Complete IAM policy document of the function."
  value       = aws_iam_role_policy.this.policy
}

output "permissions_boundary" {
  description = "Permissions boundary of the function's role."
  value       = aws_iam_role.this.permissions_boundary
}

output "kms_key_arn" {
  description = "Customer managed key that encrypts the function's environment."
  value       = aws_lambda_function.this.kms_key_arn
}
