locals {
  jwt_uses_secret     = alltrue([for algorithm in var.jwt.algorithms : startswith(algorithm, "HS")])
  jwt_creates_secret  = local.jwt_uses_secret && var.jwt.secret == null
  jwt_secret_arn      = local.jwt_creates_secret ? aws_secretsmanager_secret_version.jwt[0].arn : try(var.jwt.secret.arn, null)
  jwt_key_environment = local.jwt_uses_secret ? { JWT_SECRET_ARN = local.jwt_secret_arn } : { JWT_JWKS_URL = var.jwt.jwks_url }

  # For the functions that verify tokens: connect, and default (renew).
  jwt_environment = merge(local.jwt_key_environment, {
    JWT_ALGORITHMS = join(",", var.jwt.algorithms)
    JWT_AUDIENCE   = var.jwt.audience
    JWT_ISSUER     = var.jwt.issuer
  })
  jwt_statements = [
    for statement in concat(local.kms_statements.jwt_secret, [
      { actions = ["secretsmanager:GetSecretValue"], resources = [local.jwt_secret_arn] },
    ]) : statement if local.jwt_uses_secret
  ]
}

# A deleted secret keeps its name during the recovery window. A name prefix lets a new deployment start at once.
resource "aws_secretsmanager_secret" "jwt" {
  count = local.jwt_creates_secret ? 1 : 0

  name_prefix = "${var.name_prefix}-jwt-"
  description = "Signs and verifies the tokens of ${var.name_prefix}'s clients."
  kms_key_id  = var.kms_key_arn
  tags        = var.tags

  recovery_window_in_days = var.deletion_protection ? 30 : 0
}

# 64 characters: HS512 needs a key at least as long as its 64-byte hash.
ephemeral "aws_secretsmanager_random_password" "jwt" {
  count = local.jwt_creates_secret ? 1 : 0

  password_length     = 64
  exclude_punctuation = true
}

# Ephemeral and write-only: the value is in no plan and no state. It does not change until the version changes.
resource "aws_secretsmanager_secret_version" "jwt" {
  count = local.jwt_creates_secret ? 1 : 0

  secret_id                = aws_secretsmanager_secret.jwt[0].id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.jwt[0].random_password
  secret_string_wo_version = 1
}
