# `make check` runs TFLint where it is installed: https://github.com/terraform-linters/tflint

config {
  call_module_type = "local"
}

plugin "terraform" {
  enabled = true
  preset  = "all"
}

# The rules that know AWS are a plugin, which `tflint --init` downloads from GitHub: off, so that a check needs no network
# and no token. To have them, enable this and give it `version` and `source` as the plugin's README says.
plugin "aws" {
  enabled = false
}
