# What must hold of the bucket and its key.

mock_provider "aws" {
  source = "./tests/mocks"
}

run "bucket_is_encrypted_versioned_private_and_for_tls_only" {
  command = apply

  module {
    source = "./storage"
  }

  variables {
    name       = "pixelcnn"
    region     = "us-east-1"
    account_id = "123456789012"
    partition  = "aws"
  }

  assert {
    condition = alltrue([for rule in aws_s3_bucket_server_side_encryption_configuration.this.rule :
    rule.apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms" && rule.apply_server_side_encryption_by_default[0].kms_master_key_id == aws_kms_key.this.arn])
    error_message = "The bucket isn't encrypted with its own key."
  }
  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled" && aws_kms_key.this.enable_key_rotation
    error_message = "No versions are kept, or the key isn't rotated."
  }
  assert {
    condition     = alltrue([for closed in [aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy, aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets] : closed])
    error_message = "The bucket can be made public."
  }
  assert {
    condition = [for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement :
    [statement.Effect, statement.Principal, statement.Action, statement.Condition.Bool["aws:SecureTransport"], length(statement.Resource)]] == [["Deny", "*", "s3:*", "false", 2]]
    error_message = "The bucket, or what is in it, can be read without TLS."
  }
  assert {
    condition     = { for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.id => rule.filter[0].prefix if rule.status == "Enabled" && rule.id != "broken-uploads" } == { data = "data/", runs = "runs/", artifacts = "artifacts/" }
    error_message = "Data, checkpoints and artifacts don't have a rule each."
  }
}
