# `make check` runs TFLint where it is installed: https://github.com/terraform-linters/tflint

config {
  call_module_type = "local"
}

plugin "terraform" {
  enabled = true
  preset  = "all"
}

# The AWS rules are a plugin that `tflint --init` downloads from GitHub. It is off, so that a check needs no network and no
# token. To use it, enable it and set `version` and `source` as in the plugin's README.
plugin "aws" {
  enabled = false
}
