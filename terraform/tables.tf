locals {
  # What fanout reads of a connection. An index always projects its own key.
  fanout_attributes = ["connectedAt", "role", "shelterId", "ttl", "userId"]

  # Every key attribute is a string. An index without `projection` projects the attributes that fanout reads.
  tables = {
    connections = {
      hash_key = "connectionId"
      expires  = true
      indexes = {
        UserIndex    = { hash_key = "userId", projection = "ALL" }
        RoleIndex    = { hash_key = "roleShard" }
        ShelterIndex = { hash_key = "shelterId" } # sparse: not every user has a shelter
        AllIndex     = { hash_key = "shard" }
      }
    }
    users = {
      hash_key = "userId"
    }
    messages = {
      hash_key  = "audience"
      range_key = "messageId"
      expires   = true
    }
    shelters = {
      hash_key         = "shelterId"
      stream_view_type = "NEW_AND_OLD_IMAGES"
    }
  }

  # Existing tables, which this module neither creates nor changes.
  existing_tables = { for name, table in var.existing_tables : name => table if table != null }

  # Of every table, created by this module or not.
  table_names = merge(
    { for name, table in aws_dynamodb_table.this : name => table.name },
    { for name, table in data.aws_dynamodb_table.existing : name => table.name },
  )

  table_arns = merge(
    { for name, table in aws_dynamodb_table.this : name => table.arn },
    { for name, table in local.existing_tables : name => table.arn },
  )

  table_kms_key_arns = merge(
    { for name in keys(aws_dynamodb_table.this) : name => var.kms_key_arn },
    { for name, table in local.existing_tables : name => table.kms_key_arn },
  )

  message_retention_seconds = var.message_retention_days * 86400
}

# Read so that a wrong table fails the plan instead of every handshake.
data "aws_dynamodb_table" "existing" {
  for_each = local.existing_tables

  name = split("/", each.value.arn)[1]

  lifecycle {
    postcondition {
      condition = (
        self.arn == each.value.arn &&
        self.hash_key == local.tables[each.key].hash_key &&
        try(length(self.range_key), 0) == 0 &&
        anytrue([for attribute in self.attribute : attribute.name == self.hash_key && attribute.type == "S"])
      )
      error_message = "existing_tables.${each.key}: ${each.value.arn} must be a table of this account and region whose only key is ${local.tables[each.key].hash_key}, a string."
    }
  }
}

resource "aws_dynamodb_table" "this" {
  for_each = { for name, table in local.tables : name => table if !contains(keys(local.existing_tables), name) }

  name             = "${var.name_prefix}-${each.key}"
  billing_mode     = "PAY_PER_REQUEST"
  hash_key         = each.value.hash_key
  range_key        = try(each.value.range_key, null)
  stream_enabled   = can(each.value.stream_view_type)
  stream_view_type = try(each.value.stream_view_type, null)
  tags             = var.tags

  # Connections too: without their rows a broadcast reaches no client until each has connected again.
  deletion_protection_enabled = var.deletion_protection

  dynamic "attribute" {
    for_each = toset(concat(
      [each.value.hash_key],
      compact([try(each.value.range_key, null)]),
      [for index in try(each.value.indexes, {}) : index.hash_key],
    ))

    content {
      name = attribute.value
      type = "S"
    }
  }

  dynamic "global_secondary_index" {
    for_each = try(each.value.indexes, {})

    content {
      name            = global_secondary_index.key
      hash_key        = global_secondary_index.value.hash_key
      projection_type = try(global_secondary_index.value.projection, "INCLUDE")
      non_key_attributes = (
        can(global_secondary_index.value.projection)
        ? null
        : setsubtract(local.fanout_attributes, [global_secondary_index.value.hash_key])
      )
    }
  }

  # DynamoDB deletes expired items up to two days late, so readers also filter on ttl.
  dynamic "ttl" {
    for_each = can(each.value.expires) ? ["ttl"] : []

    content {
      attribute_name = ttl.value
      enabled        = true
    }
  }

  # Without kms_key_arn, `enabled = false` selects the key that DynamoDB owns, which is free. `true` would select
  # aws/dynamodb, for which KMS charges [DynamoDB encryption at rest]. Without this block, a table would keep its key.
  server_side_encryption {
    enabled     = var.kms_key_arn != null
    kms_key_arn = var.kms_key_arn
  }

  point_in_time_recovery {
    enabled = true
  }
}
