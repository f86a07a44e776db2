"""The local stack: an embedded AWS, the bundle, and Terraform applied to it."""
