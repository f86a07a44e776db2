locals {
  # The default quota of an account in a region, over all of its APIs and including posts to connections: requests per
  # second, and the burst above them [Amazon API Gateway quotas,
  # https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html, read on 2026-11-25].
  default_quota = { rate = 10000, burst = 5000 }

  lower_quota = { rate = 2500, burst = 1250 }

  lower_quota_regions = [
    "af-south-1",     # Cape Town
    "ap-south-2",     # Hyderabad
    "ap-southeast-3", # Jakarta
    "ap-southeast-4", # Melbourne
    "ap-southeast-5", # Malaysia
    "ap-southeast-7", # Thailand
    "ca-west-1",      # Calgary
    "eu-central-2",   # Zurich
    "eu-south-1",     # Milan
    "eu-south-2",     # Spain
    "il-central-1",   # Tel Aviv
    "me-central-1",   # UAE
    "mx-central-1",   # Mexico
  ]

  request_quota = contains(local.lower_quota_regions, local.region) ? local.lower_quota : local.default_quota

  # A broadcast leaves room for connects, client messages and the account's other APIs.
  default_post_rate = local.request_quota.rate * 95 / 100

  default_post_burst = local.request_quota.burst * 90 / 100

  post_rate = coalesce(var.post_rate, local.default_post_rate)

  post_burst = coalesce(var.post_burst, local.default_post_burst)

  throttling_rate = coalesce(var.throttling_rate_limit, local.request_quota.rate)

  throttling_burst = coalesce(var.throttling_burst_limit, local.request_quota.burst)
}

# A warning, not an error: AWS may have raised the quota of this account, which Terraform cannot read.
check "quota" {
  assert {
    condition = var.execute_api_url != null || (
      local.post_rate <= local.default_post_rate && local.post_burst <= local.default_post_burst &&
      local.throttling_rate <= local.request_quota.rate && local.throttling_burst <= local.request_quota.burst
    )
    error_message = "The default quota of API Gateway in ${local.region} is ${local.request_quota.rate} requests per second with a burst of ${local.request_quota.burst}, shared by all APIs of the account. Unless AWS has raised it for this account, set post_rate to at most ${local.default_post_rate}, post_burst to at most ${local.default_post_burst}, throttling_rate_limit to at most ${local.request_quota.rate} and throttling_burst_limit to at most ${local.request_quota.burst}, or leave them out."
  }
}
