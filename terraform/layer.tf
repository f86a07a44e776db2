locals {
  functions_zip = "${var.bundle_dir}/functions.zip"
  layer_zip     = "${var.bundle_dir}/layer.zip"

  # The bundle.json of `make build`; null if it cannot be read.
  bundle = try(jsondecode(file("${var.bundle_dir}/bundle.json")), null)
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
      condition     = local.bundle != null && alltrue([for zip in [local.functions_zip, local.layer_zip] : fileexists(zip)])
      error_message = "No functions.zip, layer.zip or bundle.json in ${var.bundle_dir}: run `make build`, or set bundle_dir to the folder that contains them."
    }

    precondition {
      condition = local.bundle == null || try(
        local.bundle.sha256 == { for zip in [local.functions_zip, local.layer_zip] : basename(zip) => filesha256(zip) },
        false,
      )
      error_message = "functions.zip and layer.zip in ${var.bundle_dir} are not the ones that its bundle.json names: they are damaged, or of different builds. Run `make build`, and copy all three files together."
    }

    precondition {
      condition = local.bundle == null || try(
        [local.bundle.runtime, local.bundle.architecture] == [var.lambda_runtime, var.lambda_architecture],
        false,
      )
      error_message = "The bundle in ${var.bundle_dir} is for ${try("${local.bundle.runtime} on ${local.bundle.architecture}", "an unknown runtime")}; lambda_runtime and lambda_architecture require ${var.lambda_runtime} on ${var.lambda_architecture}. Run `.venv/bin/muster build --runtime ${var.lambda_runtime} --arch ${var.lambda_architecture}`."
    }
  }
}
