# Clients connect to live.example.org, with a certificate and a DNS record. The default endpoint stays open.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region = "eu-west-1"
}

locals {
  domain_name = "live.example.org"
}

data "aws_route53_zone" "this" {
  name = "example.org"
}

# Must be in the region of the API. ACM renews it as long as the validation record exists.
resource "aws_acm_certificate" "this" {
  domain_name       = local.domain_name
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_route53_record" "validation" {
  for_each = {
    for option in aws_acm_certificate.this.domain_validation_options : option.domain_name => option
  }

  zone_id = data.aws_route53_zone.this.zone_id
  name    = each.value.resource_record_name
  type    = each.value.resource_record_type
  ttl     = 300
  records = [each.value.resource_record_value]
}

resource "aws_acm_certificate_validation" "this" {
  certificate_arn         = aws_acm_certificate.this.arn
  validation_record_fqdns = [for record in aws_route53_record.validation : record.fqdn]
}

module "muster" {
  source = "../.." # "git::https://example.org/muster.git//terraform?ref=v0.2.0" in your own configuration

  bundle_dir = "${path.root}/../../../build" # the output folder of `make build`

  custom_domain = {
    domain_name     = local.domain_name
    certificate_arn = aws_acm_certificate_validation.this.certificate_arn # known once the certificate is valid
    zone            = { id = data.aws_route53_zone.this.zone_id }

    # Set to true in a later apply, when clients use the domain (../../../docs/deploy.md).
    close_default_endpoint = false
  }
}

output "websocket_url" {
  description = "WebSocket URL for clients; they also send their token."
  value       = module.muster.websocket_url
}
