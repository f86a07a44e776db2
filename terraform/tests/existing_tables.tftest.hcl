# Tables that were there before: used, neither made nor changed.

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

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

override_data {
  target = data.aws_dynamodb_table.existing["users"]
  values = {
    arn       = "arn:aws:dynamodb:eu-west-1:123456789012:table/people"
    hash_key  = "userId"
    range_key = ""
    attribute = [{ name = "team", type = "S" }, { name = "userId", type = "S" }]
  }
}

override_data {
  target = data.aws_dynamodb_table.existing["shelters"]
  values = {
    arn       = "arn:aws:dynamodb:eu-west-1:123456789012:table/places"
    hash_key  = "shelterId"
    range_key = ""
    attribute = [{ name = "shelterId", type = "S" }]
  }
}

variables {
  bundle_dir = "./tests/bundle"
  jwt        = { secret = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:jwt-AbCdEf" } }
  existing_tables = {
    users = {
      arn         = "arn:aws:dynamodb:eu-west-1:123456789012:table/people"
      kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    }
    shelters = { arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/places" }
  }
}

run "both" {
  command = plan

  assert {
    condition     = keys(aws_dynamodb_table.this) == ["connections", "messages"]
    error_message = "No table is made in place of one that exists."
  }

  assert {
    condition     = [output.users_table, output.shelters_table] == ["people", "places"]
    error_message = "The outputs name the existing tables."
  }

  assert {
    condition     = alltrue([for name in ["connect", "default", "offline"] : local.functions[name].environment.USERS_TABLE == "people"])
    error_message = "The functions read the existing users."
  }

  assert {
    condition = alltrue([
      for name, action in { connect = "dynamodb:GetItem", default = "dynamodb:GetItem", offline = "dynamodb:BatchGetItem" } :
      one([for statement in local.functions[name].statements : statement.resources if statement.actions == [action]]) == ["arn:aws:dynamodb:eu-west-1:123456789012:table/people"]
    ])
    error_message = "The functions may read the existing users, by the actions that they read their own by."
  }

  assert {
    condition = local.kms_statements.users_table == [{
      actions   = ["kms:Decrypt"]
      resources = ["arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"]
      conditions = { StringEquals = {
        "kms:EncryptionContext:aws:dynamodb:tableName" = ["people"]
        "kms:ViaService"                               = ["dynamodb.eu-west-1.amazonaws.com"]
      } }
    }]
    error_message = "Readers of the existing users may use the key of that table."
  }

  assert {
    condition     = local.kms_statements.shelters_table == []
    error_message = "A table without a key of yours needs no permission."
  }
}

run "one" {
  command = plan

  variables {
    existing_tables = { users = { arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/people" } }
  }

  assert {
    condition     = keys(aws_dynamodb_table.this) == ["connections", "messages", "shelters"] && output.shelters_table == "muster-shelters"
    error_message = "The other table is made here."
  }
}

run "of_another_region" {
  command = plan

  variables {
    existing_tables = { users = { arn = "arn:aws:dynamodb:us-east-1:123456789012:table/people" } }
  }

  expect_failures = [data.aws_dynamodb_table.existing]
}

run "with_another_key" {
  command = plan

  override_data {
    target = data.aws_dynamodb_table.existing["users"]
    values = {
      arn       = "arn:aws:dynamodb:eu-west-1:123456789012:table/people"
      hash_key  = "email"
      range_key = ""
      attribute = [{ name = "email", type = "S" }]
    }
  }

  expect_failures = [data.aws_dynamodb_table.existing]
}

run "with_a_sort_key" {
  command = plan

  override_data {
    target = data.aws_dynamodb_table.existing["users"]
    values = {
      arn       = "arn:aws:dynamodb:eu-west-1:123456789012:table/people"
      hash_key  = "userId"
      range_key = "team"
      attribute = [{ name = "team", type = "S" }, { name = "userId", type = "S" }]
    }
  }

  expect_failures = [data.aws_dynamodb_table.existing]
}

run "with_a_number_as_key" {
  command = plan

  override_data {
    target = data.aws_dynamodb_table.existing["users"]
    values = {
      arn       = "arn:aws:dynamodb:eu-west-1:123456789012:table/people"
      hash_key  = "userId"
      range_key = ""
      attribute = [{ name = "userId", type = "N" }]
    }
  }

  expect_failures = [data.aws_dynamodb_table.existing]
}
