output "name" {
  description = "Name of the function."
  value       = aws_lambda_function.this.function_name
}

output "alias" {
  description = "Name of the alias that callers invoke; null without SnapStart, where they invoke the function itself."
  value       = one(aws_lambda_alias.live[*].name)
}

output "arn" {
  description = "ARN that callers invoke: the alias's with SnapStart, or else the function's, without a version."
  value       = var.snap_start ? aws_lambda_alias.live[0].arn : aws_lambda_function.this.arn
}

output "invoke_arn" {
  description = "ARN by which API Gateway invokes the same."
  value       = var.snap_start ? aws_lambda_alias.live[0].invoke_arn : aws_lambda_function.this.invoke_arn
}

output "log_group" {
  description = "Name of the function's log group."
  value       = aws_cloudwatch_log_group.this.name
}

output "policy" {
  description = "The function's whole IAM policy document."
  value       = aws_iam_role_policy.this.policy
}

output "permissions_boundary" {
  description = "IAM policy that bounds the function's role."
  value       = aws_iam_role.this.permissions_boundary
}

output "kms_key_arn" {
  description = "Customer managed key of the function's environment."
  value       = aws_lambda_function.this.kms_key_arn
}
