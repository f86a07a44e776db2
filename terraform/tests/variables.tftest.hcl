# Every variable refuses what would fail later, or quietly misbehave.

# Not mock_provider: Terraform cannot mock an ephemeral resource. The real one plans offline once it need not ask who
# calls, nor for a password (hence a secret below).
provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}

provider "aws" {
  alias                       = "elsewhere"
  region                      = "eusc-de-east-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}

provider "aws" {
  alias                       = "tagging"
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true

  default_tags {
    tags = { Owner = "shelter-platform" }
  }
}

provider "aws" {
  alias                       = "mailing"
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true

  default_tags {
    tags = { Owner = "duty@example.org" }
  }
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

variables {
  bundle_dir = "./tests/bundle"
  jwt        = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
}

run "too_small" {
  command = plan

  variables {
    lambda_memory_mb       = 127
    connection_ttl_seconds = 59
    message_retention_days = 0
    audience_shards        = 0
    page_size              = 0
    batch_size             = 0
    partition_concurrency  = 0
    batch_concurrency      = 0
    post_concurrency       = 0
    post_burst             = -1
    throttling_rate_limit  = 0
    throttling_burst_limit = 0
  }

  expect_failures = [
    var.lambda_memory_mb,
    var.connection_ttl_seconds,
    var.message_retention_days,
    var.audience_shards,
    var.page_size,
    var.batch_size,
    var.partition_concurrency,
    var.batch_concurrency,
    var.post_concurrency,
    var.post_burst,
    var.throttling_rate_limit,
    var.throttling_burst_limit,
  ]
}

run "too_large" {
  command = plan

  variables {
    lambda_memory_mb       = 10241
    connection_ttl_seconds = 604801
    message_retention_days = 366
    audience_shards        = 65
    page_size              = 1001
    batch_size             = 1001
    partition_concurrency  = 41
    batch_concurrency      = 41
    post_concurrency       = 513
    post_rate              = 1000000 # so that the pace is not what is refused
  }

  expect_failures = [
    var.lambda_memory_mb,
    var.connection_ttl_seconds,
    var.message_retention_days,
    var.audience_shards,
    var.page_size,
    var.batch_size,
    var.partition_concurrency,
    var.batch_concurrency,
    var.post_concurrency,
  ]
}

run "not_whole" {
  command = plan

  variables {
    lambda_memory_mb       = 512.5
    connection_ttl_seconds = 60.5
    message_retention_days = 1.5
    audience_shards        = 1.5
    page_size              = 1.5
    batch_size             = 1.5
    partition_concurrency  = 1.5
    batch_concurrency      = 1.5
    post_concurrency       = 1.5
    throttling_burst_limit = 1.5
  }

  expect_failures = [
    var.lambda_memory_mb,
    var.connection_ttl_seconds,
    var.message_retention_days,
    var.audience_shards,
    var.page_size,
    var.batch_size,
    var.partition_concurrency,
    var.batch_concurrency,
    var.post_concurrency,
    var.throttling_burst_limit,
  ]
}

run "not_offered" {
  command = plan

  variables {
    name_prefix         = "Muster"
    lambda_runtime      = "nodejs22.x"
    lambda_architecture = "sparc"
    log_retention_days  = 31
    log_level           = "info"
    stage_name          = "live stage"
    execute_api_url     = "http://127.0.0.1:4566/_aws/execute-api"
  }

  expect_failures = [
    var.name_prefix,
    var.lambda_runtime,
    var.lambda_architecture,
    var.log_retention_days,
    var.log_level,
    var.stage_name,
    var.execute_api_url,
  ]
}

run "nearly_right" {
  command = plan

  variables {
    name_prefix     = "a-prefix-of-25-characters"
    lambda_runtime  = "python3.9"
    execute_api_url = "http://127.0.0.1:4566/{api_id}/"
  }

  expect_failures = [var.name_prefix, var.lambda_runtime, var.execute_api_url]
}

run "no_roles" {
  command = plan

  variables {
    roles = {}
  }

  expect_failures = [var.roles]
}

run "too_many_roles" {
  command = plan

  variables {
    roles = { for number in range(101) : "role_${number}" => { actions = [] } }
  }

  expect_failures = [var.roles]
}

run "role_name" {
  command = plan

  variables {
    roles = { "First-Responder" = { actions = [] } }
  }

  expect_failures = [var.roles]
}

run "role_action" {
  command = plan

  variables {
    roles = { admin = { actions = ["shout"] } }
  }

  expect_failures = [var.roles]
}

run "jwt_algorithm_none" {
  command = plan

  variables {
    jwt = { algorithms = ["none"] }
  }

  expect_failures = [var.jwt]
}

run "jwt_no_algorithm" {
  command = plan

  variables {
    jwt = { algorithms = [] }
  }

  expect_failures = [var.jwt]
}

run "jwt_families_mixed" {
  command = plan

  variables {
    jwt = { algorithms = ["HS256", "RS256"], jwks_url = "https://id.example.org/jwks.json" }
  }

  expect_failures = [var.jwt]
}

run "jwt_empty_issuer" {
  command = plan

  variables {
    jwt = { issuer = " " }
  }

  expect_failures = [var.jwt]
}

run "jwt_empty_audience" {
  command = plan

  variables {
    jwt = { audience = "" }
  }

  expect_failures = [var.jwt]
}

run "jwt_public_keys_without_jwks" {
  command = plan

  variables {
    jwt = { algorithms = ["ES256"] }
  }

  expect_failures = [var.jwt]
}

run "jwt_secret_with_jwks" {
  command = plan

  variables {
    jwt = { jwks_url = "https://id.example.org/jwks.json" }
  }

  expect_failures = [var.jwt]
}

run "jwt_public_keys_with_secret" {
  command = plan

  variables {
    jwt = { algorithms = ["RS256"], jwks_url = "https://id.example.org/jwks.json", secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
  }

  expect_failures = [var.jwt]
}

run "jwt_secret_name" {
  command = plan

  variables {
    jwt = { secret = { arn = "jwt-AbCdEf" } }
  }

  expect_failures = [var.jwt]
}

run "jwt_secret_arn_without_its_end" {
  command = plan

  variables {
    jwt = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shelters/jwt" } }
  }

  expect_failures = [var.jwt]
}

run "jwt_plain_http" {
  command = plan

  variables {
    jwt = { algorithms = ["RS256"], jwks_url = "http://id.example.org/jwks.json" }
  }

  expect_failures = [var.jwt]
}

run "jwt_keys_with_a_password" {
  command = plan

  variables {
    jwt = { algorithms = ["RS256"], jwks_url = "https://user:password@id.example.org/jwks.json" }
  }

  expect_failures = [var.jwt]
}

run "jwt_disguised_loopback" {
  command = plan

  variables {
    jwt = { algorithms = ["RS256"], jwks_url = "http://127.0.0.1.example.org/jwks.json" }
  }

  expect_failures = [var.jwt]
}

run "origin_with_a_path" {
  command = plan

  variables {
    allowed_origins = ["https://app.example.org/"]
  }

  expect_failures = [var.allowed_origins]
}

run "origin_in_capitals" {
  command = plan

  variables {
    allowed_origins = ["https://App.example.org"]
  }

  expect_failures = [var.allowed_origins]
}

run "origin_with_the_default_port" {
  command = plan

  variables {
    allowed_origins = ["https://app.example.org:443"]
  }

  expect_failures = [var.allowed_origins]
}

run "origin_without_encryption" {
  command = plan

  variables {
    allowed_origins = ["http://app.example.org"]
  }

  expect_failures = [var.allowed_origins]
}

run "origin_with_a_wildcard" {
  command = plan

  variables {
    allowed_origins = ["https://*.example.org"]
  }

  expect_failures = [var.allowed_origins]
}

run "more_origins_than_an_environment_holds" {
  command = plan

  variables {
    allowed_origins = [for number in range(100) : "https://app-${number}.example.org"]
  }

  expect_failures = [var.allowed_origins]
}

run "function_that_does_not_exist" {
  command = plan

  variables {
    functions = { delivery = { memory_mb = 512 } }
  }

  expect_failures = [var.functions]
}

run "function_with_too_little_memory" {
  command = plan

  variables {
    functions = { deliver = { memory_mb = 127 } }
  }

  expect_failures = [var.functions]
}

run "function_with_too_much_memory" {
  command = plan

  variables {
    functions = { deliver = { memory_mb = 10241 } }
  }

  expect_failures = [var.functions]
}

run "function_slower_than_api_gateway_waits" {
  command = plan

  variables {
    functions = { connect = { timeout_seconds = 30 } }
  }

  expect_failures = [var.functions]
}

run "function_slower_than_its_state_waits" {
  command = plan

  variables {
    functions = { accept = { timeout_seconds = 13 } }
  }

  expect_failures = [var.functions]
}

run "function_faster_than_its_calls_to_aws" {
  command = plan

  variables {
    functions = { disconnect = { timeout_seconds = 9 } }
  }

  expect_failures = [var.functions]
}

run "deliver_without_the_time_that_the_pace_counts_on" {
  command = plan

  variables {
    functions = { deliver = { timeout_seconds = 29 } }
  }

  expect_failures = [var.functions]
}

run "function_that_never_runs" {
  command = plan

  variables {
    functions = { connect = { reserved_concurrency = 0 } }
  }

  expect_failures = [var.functions]
}

run "a_broadcast_that_throttles_itself" {
  command = plan

  variables {
    functions = { deliver = { reserved_concurrency = 19 } }
  }

  expect_failures = [var.functions]
}

run "partitions_that_throttle_themselves" {
  command = plan

  variables {
    functions = { offline = { reserved_concurrency = 9 } }
  }

  expect_failures = [var.functions]
}

run "snap_start_of_an_old_runtime" {
  command = plan

  variables {
    snap_start     = true
    lambda_runtime = "python3.11"
  }

  # The bundle of these tests is for another runtime, which is reported at the same time.
  expect_failures = [var.snap_start, aws_lambda_layer_version.dependencies]
}

run "domain_with_a_scheme" {
  command = plan

  variables {
    custom_domain = { domain_name = "https://live.example.org", certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678" }
  }

  expect_failures = [var.custom_domain]
}

run "domain_without_a_dot" {
  command = plan

  variables {
    custom_domain = { domain_name = "live", certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678" }
  }

  expect_failures = [var.custom_domain]
}

run "domain_with_another_certificate" {
  command = plan

  variables {
    custom_domain = { domain_name = "live.example.org", certificate_arn = "arn:aws:iam::123456789012:server-certificate/live" }
  }

  expect_failures = [var.custom_domain]
}

run "domain_with_a_zone_name" {
  command = plan

  variables {
    custom_domain = { domain_name = "live.example.org", certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678", zone = { id = "example.org" } }
  }

  expect_failures = [var.custom_domain]
}

run "domain_off_aws" {
  command = plan

  variables {
    custom_domain   = { domain_name = "live.example.org", certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/12345678" }
    execute_api_url = "http://127.0.0.1:4566/{api_id}"
  }

  expect_failures = [var.custom_domain]
}

run "no_pace" {
  command = plan

  variables {
    post_rate = 0
  }

  expect_failures = [var.post_rate]
}

run "a_pace_that_no_invocation_can_keep" {
  command = plan

  variables {
    post_rate = 249 # 20 batches of 250 at a time would take 20.08 s
  }

  expect_failures = [var.post_rate]
}

run "extremes_are_accepted" {
  command = plan

  variables {
    name_prefix            = "m2"
    lambda_memory_mb       = 128
    connection_ttl_seconds = 60
    message_retention_days = 1
    audience_shards        = 1
    page_size              = 7
    batch_size             = 3
    partition_concurrency  = 40
    batch_concurrency      = 1
    post_concurrency       = 1
    throttling_rate_limit  = 1
    allowed_origins        = ["https://app.example.org", "https://app.example.org:8443", "http://localhost:5173", "capacitor://localhost"]
    roles                  = { nobody = { actions = [] } }
    jwt                    = { algorithms = ["RS256"], jwks_url = "http://127.0.0.1:8000/jwks.json" }
  }

  assert {
    condition     = aws_dynamodb_table.this["users"].name == "m2-users"
    error_message = "name_prefix starts every name."
  }
}

run "not_an_arn" {
  command = plan

  variables {
    kms_key_arn              = "arn:aws:kms:eu-west-1:123456789012:alias/muster" # IAM policies name keys only
    permissions_boundary_arn = "boundary"
    existing_tables          = { users = { arn = "people" } }
    jwt = {
      secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf", kms_key_arn = "alias/jwt" }
    }
  }

  expect_failures = [var.kms_key_arn, var.permissions_boundary_arn, var.existing_tables, var.jwt]
}

run "another_region" {
  command = plan

  variables {
    alarm_actions       = ["arn:aws:sns:us-east-1:123456789012:on-call"]
    kms_key_arn         = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    jwt                 = { secret = { arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:jwt-AbCdEf" } }
    offline_subscribers = { one = { protocol = "lambda", endpoint = "arn:aws:lambda:us-east-1:123456789012:function:wording" } }
  }

  expect_failures = [var.alarm_actions, var.kms_key_arn, var.jwt, var.offline_subscribers]
}

run "the_key_of_a_table_by_its_alias" {
  command = plan

  variables {
    existing_tables = { shelters = { arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/places", kms_key_arn = "alias/places" } }
  }

  expect_failures = [var.existing_tables]
}

run "offline_subscriber_protocol_that_is_not_offered" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "http", endpoint = "http://partner.example.org/hook" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_endpoint_of_email" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "email", endpoint = "office" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_endpoint_of_firehose" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "firehose", endpoint = "archive", subscription_role_arn = "arn:aws:iam::123456789012:role/archive" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_endpoint_of_https" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "https", endpoint = "http://partner.example.org/hook" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_endpoint_of_lambda" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "lambda", endpoint = "wording" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_function_of_another_account" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "lambda", endpoint = "arn:aws:lambda:eu-west-1:210987654321:function:wording" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_function_as_it_was_last_changed" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "lambda", endpoint = "arn:aws:lambda:eu-west-1:123456789012:function:wording:$LATEST" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_endpoint_of_sms" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sms", endpoint = "0555 1230000" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_endpoint_of_sqs" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sqs", endpoint = "arn:aws:sqs:eu-west-1:123456789012:kitchen.fifo" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_filter_that_is_not_json" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sms", endpoint = "+15551230000", filter_policy = "type = alert" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_filter_that_is_a_list" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sms", endpoint = "+15551230000", filter_policy = "[]" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_filter_scope" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sms", endpoint = "+15551230000", filter_policy = "{}", filter_policy_scope = "Body" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_raw_sms" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sms", endpoint = "+15551230000", raw_message_delivery = true } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_firehose_without_role" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "firehose", endpoint = "arn:aws:firehose:eu-west-1:123456789012:deliverystream/archive" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_role_without_firehose" {
  command = plan

  variables {
    offline_subscribers = { one = { protocol = "sms", endpoint = "+15551230000", subscription_role_arn = "arn:aws:iam::123456789012:role/archive" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "offline_subscriber_with_a_space_in_its_name" {
  command = plan

  variables {
    offline_subscribers = { "duty phone" = { protocol = "sms", endpoint = "+15551230000" } }
  }

  expect_failures = [var.offline_subscribers]
}

run "nothing_in_place_of_something" {
  command = plan

  variables {
    alarm_actions       = [null]
    allowed_origins     = [null]
    custom_domain       = { domain_name = null, certificate_arn = null }
    existing_tables     = { users = { arn = null } }
    jwt                 = { algorithms = [null] }
    offline_subscribers = { duty = null }
    roles               = { admin = null }
    tags                = { team = null }
  }

  expect_failures = [
    var.alarm_actions, var.allowed_origins, var.custom_domain, var.existing_tables, var.jwt, var.offline_subscribers,
    var.roles, var.tags,
  ]
}

run "nothing_further_in" {
  command = plan

  variables {
    offline_subscribers = { duty = { protocol = null, endpoint = null } }
    roles               = { admin = { actions = null } }
  }

  expect_failures = [var.offline_subscribers, var.roles]
}

run "a_function_that_differs_in_nothing" {
  command = plan

  variables {
    functions = { connect = null, deliver = {} }
  }

  assert {
    condition     = local.sizes.connect.memory_mb == var.lambda_memory_mb
    error_message = "What is not said of a function is as for all."
  }
}

run "more_roles_than_an_environment_holds" {
  command = plan

  variables {
    roles = { for number in range(40) : "role_${number}" => { actions = ["alert", "broadcast"] } }
  }

  expect_failures = [var.roles]
}

run "an_issuer_longer_than_an_environment_holds" {
  command = plan

  variables {
    jwt = {
      issuer = "https://accounts.example.org/${join("", [for number in range(600) : "x"])}"
      secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" }
    }
  }

  expect_failures = [var.jwt]
}

run "a_name_that_xray_keeps_to_itself" {
  command = plan

  variables {
    name_prefix = "default"
  }

  expect_failures = [var.name_prefix]
}

run "tag_of_aws" {
  command = plan

  variables {
    tags = { "aws:team" = "any" }
  }

  expect_failures = [var.tags]
}

run "tag_of_aws_in_capitals" {
  command = plan

  variables {
    tags = { "AWS:team" = "any" }
  }

  expect_failures = [var.tags]
}

run "tag_whose_value_is_of_aws" {
  command = plan

  variables {
    tags = { team = "aws:any" }
  }

  expect_failures = [var.tags]
}

run "tag_without_a_key" {
  command = plan

  variables {
    tags = { "" = "any" }
  }

  expect_failures = [var.tags]
}

run "tag_with_a_long_key" {
  command = plan

  variables {
    tags = { (join("", [for number in range(129) : "k"])) = "any" }
  }

  expect_failures = [var.tags]
}

run "tag_with_a_long_value" {
  command = plan

  variables {
    tags = { team = join("", [for number in range(257) : "v"]) }
  }

  expect_failures = [var.tags]
}

run "tags_that_differ_only_in_case" {
  command = plan

  variables {
    tags = { team = "any", Team = "any" }
  }

  expect_failures = [var.tags]
}

run "tag_that_differs_only_in_case_from_a_default" {
  command = plan

  providers = {
    aws = aws.tagging
  }

  variables {
    tags = { owner = "any" }
  }

  expect_failures = [var.tags]
}

run "tag_in_place_of_a_default" {
  command = plan

  providers = {
    aws = aws.tagging
  }

  variables {
    tags = merge({ Owner = "any" }, { for number in range(49) : "key ${number}" => join("", [for each in range(256) : "v"]) })
  }

  assert {
    condition     = length(aws_dynamodb_table.this["users"].tags_all) == 50
    error_message = "50 tags are taken, the provider's among them."
  }
}

run "more_tags_than_aws_takes" {
  command = plan

  variables {
    tags = { for number in range(51) : "key ${number}" => "any" }
  }

  expect_failures = [var.tags]
}

run "more_tags_than_aws_takes_with_the_defaults" {
  command = plan

  providers = {
    aws = aws.tagging
  }

  variables {
    tags = { for number in range(50) : "key ${number}" => "any" }
  }

  expect_failures = [var.tags]
}

run "tag_with_a_sign_that_aws_refuses" {
  command = plan

  variables {
    tags = { team = "any; all" }
  }

  expect_failures = [var.tags]
}

# The provider in use knows this region, and none of its services.
run "a_region_without_the_services" {
  command = plan

  providers = {
    aws = aws.elsewhere
  }

  variables {
    jwt = { secret = { arn = "arn:aws:secretsmanager:eusc-de-east-1:123456789012:secret:jwt-AbCdEf" } }
  }

  expect_failures = [check.region]
}

run "default_tags_that_x_ray_refuses" {
  command = plan

  providers = {
    aws = aws.mailing
  }

  expect_failures = [aws_xray_group.this]
}
