# The bucket and its key, apart from the rest so that `infra/destroy` can keep them.

module "storage" {
  source = "./storage"

  name       = var.name
  region     = var.region
  account_id = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
}

import {
  for_each = var.kept_storage == null ? {} : { kept = var.kept_storage }
  to       = module.storage.aws_s3_bucket.this
  id       = each.value.bucket
}

import {
  for_each = var.kept_storage == null ? {} : { kept = var.kept_storage }
  to       = module.storage.aws_kms_key.this
  id       = each.value.key_id
}

import {
  for_each = var.kept_storage == null ? {} : { kept = var.kept_storage }
  to       = module.storage.aws_kms_alias.this
  id       = each.value.alias
}
