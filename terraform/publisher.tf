locals {
  # Start and follow broadcasts: for the function default, and for services through the output publisher_policy_json.
  broadcast_statements = concat(local.kms_statements.broadcast_execution, [
    { actions = ["states:StartExecution"], resources = [local.state_machine_arns.broadcast] },
    {
      actions   = ["states:DescribeExecution"]
      resources = ["${replace(local.state_machine_arns.broadcast, ":stateMachine:", ":execution:")}:*"]
    },
  ])

  publisher_policy = {
    Version = "2012-10-17"
    Statement = [
      for statement in concat(local.broadcast_statements, [
        # Shows whether a request was accepted before its broadcast ends.
        {
          actions   = ["states:GetExecutionHistory"]
          resources = ["${replace(local.state_machine_arns.broadcast, ":stateMachine:", ":execution:")}:*"]
        },
        ]) : merge(
        { Effect = "Allow", Action = statement.actions, Resource = statement.resources },
        { for condition in [try(statement.conditions, null)] : "Condition" => condition if condition != null },
      )
    ]
  }
}
