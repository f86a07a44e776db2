locals {
  functions_zip = "${var.bundle_dir}/functions.zip"
  layer_zip     = "${var.bundle_dir}/layer.zip"
}

# The packages of functions/requirements.txt.
resource "aws_lambda_layer_version" "dependencies" {
  layer_name               = "${var.name_prefix}-dependencies"
  description              = "Packages that the functions import."
  filename                 = local.layer_zip
  source_code_hash         = fileexists(local.layer_zip) ? filebase64sha256(local.layer_zip) : null
  compatible_runtimes      = [var.lambda_runtime]
  compatible_architectures = [var.lambda_architecture]

  lifecycle {
    precondition {
      condition     = alltrue([for zip in [local.functions_zip, local.layer_zip] : fileexists(zip)])
      error_message = "No functions.zip or layer.zip in ${var.bundle_dir}: run `make build`, or point bundle_dir to the folder that has them."
    }
  }
}
