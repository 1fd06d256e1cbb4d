# Machine images by id, or by the public SSM parameter that names the newest.

data "aws_ssm_parameter" "image" {
  for_each = { for role, image in var.images : role => image if startswith(image, "/") }

  name = each.value
}

locals {
  image_ids = {
    for role, image in var.images : role => startswith(image, "/") ? nonsensitive(data.aws_ssm_parameter.image[role].value) : image
  }
}
