variable "roles" {
  description = "The client actions that each role may send. own_shelter_only restricts shelter_update to the user's own shelter and its audience. It does not restrict alert and broadcast: leave them out of actions."
  type = map(object({
    actions          = set(string)
    own_shelter_only = optional(bool, false)
  }))
  default = {
    admin            = { actions = ["alert", "broadcast", "shelter_update"] }
    coordinator      = { actions = ["alert", "broadcast", "shelter_update"] }
    shelter_operator = { actions = ["shelter_update"], own_shelter_only = true }
    first_responder  = { actions = ["alert"] }
    resident         = { actions = [] }
  }
  nullable = false

  validation {
    condition     = length(var.roles) >= 1 && length(var.roles) <= 100
    error_message = "roles must name 1 to 100 roles."
  }

  validation {
    condition     = alltrue([for name in keys(var.roles) : can(regex("^[a-z][a-z0-9_]{0,31}$", name))])
    error_message = "roles: a role's name must be 1 to 32 lower-case letters, digits and underscores, and start with a letter."
  }

  validation {
    condition = alltrue([
      for role in values(var.roles) : try(length(setsubtract(role.actions, ["alert", "broadcast", "shelter_update"])) == 0, false)
    ])
    error_message = "roles: actions must be among alert, broadcast and shelter_update."
  }

  # Lambda allows 4 KB of environment, measured as JSON, in which this JSON is quoted again.
  validation {
    condition     = length(jsonencode(jsonencode(var.roles))) <= 2400
    error_message = "roles must take at most 2,400 characters of the functions' environment: some 25 of them, or more with short names and few actions."
  }
}
