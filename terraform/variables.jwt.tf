variable "jwt" {
  description = <<-EOT
    How tokens are verified. HS256, HS384 and HS512 use a shared secret in Secrets Manager: `secret` is its ARN and, if
    it is encrypted with a customer managed key, that key's ARN. Without `secret`, this module creates one. Its value is
    the key and nothing else: the text, or the bytes of a binary secret. With JSON, such as {"key": "..."}, every
    handshake fails, and the log says why. White space, a newline or quotation marks around the key are part of the key;
    the log contains a warning. RS256, RS384, RS512, ES256, ES384 and ES512 use the public keys at jwks_url, without
    following redirects: keys with use "sig" or none, for the algorithms named. A token without a kid is verified with
    the only key that has none.
    Keys are read every five minutes. While they cannot be read, the last ones are used for at most 24 hours.
    The two families cannot be mixed: a verifier that accepts both can be tricked into using a public key as a secret.
  EOT
  type = object({
    algorithms = optional(list(string), ["HS256"])
    issuer     = optional(string, "muster")
    audience   = optional(string, "muster")
    secret     = optional(object({ arn = string, kms_key_arn = optional(string) }))
    jwks_url   = optional(string)
  })
  default  = {}
  nullable = false

  validation {
    condition = length(var.jwt.algorithms) > 0 && alltrue([
      for algorithm in var.jwt.algorithms : can(regex("^(HS|RS|ES)(256|384|512)$", algorithm))
    ])
    error_message = "jwt.algorithms must name at least one of HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384 and ES512."
  }

  validation {
    condition     = try(length(distinct([for algorithm in var.jwt.algorithms : startswith(algorithm, "HS")])) <= 1, true)
    error_message = "jwt.algorithms must not mix secrets (HS256, HS384, HS512) with public keys (RS..., ES...)."
  }

  validation {
    condition     = trimspace(var.jwt.issuer) != "" && trimspace(var.jwt.audience) != ""
    error_message = "jwt.issuer and jwt.audience must not be empty."
  }

  # All environment variables of a function may take 4 KB [Lambda quotas].
  validation {
    condition     = length(join("", compact([var.jwt.issuer, var.jwt.audience, var.jwt.jwks_url]))) <= 600
    error_message = "jwt.issuer, jwt.audience and jwt.jwks_url must be at most 600 characters in all."
  }

  validation {
    condition     = var.jwt.secret == null || try(alltrue([for algorithm in var.jwt.algorithms : startswith(algorithm, "HS")]), true)
    error_message = "jwt.secret is for HS256, HS384 and HS512 only; RS... and ES... need jwks_url."
  }

  validation {
    # IAM compares the whole ARN: without the six characters that AWS adds to the name, every handshake would fail.
    condition     = var.jwt.secret == null || can(regex("^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:\\d{12}:secret:.+-[A-Za-z0-9]{6}$", var.jwt.secret.arn))
    error_message = "jwt.secret.arn must be the whole ARN of a Secrets Manager secret, with the hyphen and six characters at its end (arn:aws:secretsmanager:<region>:<account>:secret:<name>-<6 characters>)."
  }

  validation {
    condition     = try(var.jwt.secret.kms_key_arn, null) == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:\\d{12}:key/[A-Za-z0-9-]+$", var.jwt.secret.kms_key_arn))
    error_message = "jwt.secret.kms_key_arn must be the whole ARN of the KMS key (arn:aws:kms:<region>:<account>:key/<id>) that encrypts the secret."
  }

  validation {
    condition     = var.jwt.secret == null || try(split(":", var.jwt.secret.arn)[3] == local.region, true)
    error_message = "jwt.secret.arn must be a secret of the same region, ${local.region}."
  }

  validation {
    condition     = try((var.jwt.jwks_url != null) == anytrue([for algorithm in var.jwt.algorithms : !startswith(algorithm, "HS")]), true)
    error_message = "jwt.jwks_url is required with RS... and ES..., and is not allowed with HS...."
  }

  validation {
    condition     = var.jwt.jwks_url == null || can(regex("^(https://[^/@\\s]+|http://127\\.0\\.0\\.1(:\\d+)?)(/\\S*)?$", var.jwt.jwks_url))
    error_message = "jwt.jwks_url must start with https:// (http:// for 127.0.0.1 only), and must not contain a user name or password."
  }
}
