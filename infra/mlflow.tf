# MLflow's server: runs and metrics in Postgres, artifacts through the server into the bucket.

resource "aws_instance" "mlflow" {
  #checkov:skip=CKV_AWS_126:EC2's own metrics of five minutes are enough for a tracking server
  ami                         = local.image_ids.head
  instance_type               = var.mlflow_instance_type
  iam_instance_profile        = aws_iam_instance_profile.node["mlflow"].name
  user_data                   = local.user_data.mlflow
  user_data_replace_on_change = true
  ebs_optimized               = true

  subnet_id              = aws_subnet.control.id
  private_ip             = local.mlflow_address
  vpc_security_group_ids = [aws_security_group.mlflow.id]

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    volume_size = 40
    volume_type = "gp3"
    encrypted   = true
    kms_key_id  = module.storage.key_arn
  }

  tags = { Name = "${var.name}-mlflow" }

  depends_on = [aws_iam_role_policy.node, module.secrets, aws_vpc_endpoint.service]

  lifecycle {
    ignore_changes = [ami]
  }
}

resource "aws_db_subnet_group" "mlflow" {
  count = var.mlflow_database_class == "" ? 0 : 1

  name       = "${var.name}-mlflow"
  subnet_ids = aws_subnet.private[*].id
}

# Force TLS, and nothing else, away from AWS's defaults.
resource "aws_db_parameter_group" "mlflow" {
  count = var.mlflow_database_class == "" ? 0 : 1

  name   = "${var.name}-mlflow"
  family = "postgres16"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
}

resource "aws_db_instance" "mlflow" {
  #checkov:skip=CKV_AWS_157:a second zone doubles the price; trackers hold what a server that is down missed
  #checkov:skip=CKV_AWS_293:`infra/destroy` must leave nothing that costs; it takes a snapshot first
  #checkov:skip=CKV_AWS_118:enhanced monitoring costs more than a database of this size tells
  #checkov:skip=CKV_AWS_353:the same holds of Performance Insights
  #checkov:skip=CKV_AWS_161:MLflow's pool keeps connections by password; the password is AWS's own and rotates
  #checkov:skip=CKV2_AWS_30:logging each query would put parameters of runs into a log
  #checkov:skip=CKV_AWS_129:the same of logs sent to CloudWatch
  count = var.mlflow_database_class == "" ? 0 : 1

  identifier                  = "${var.name}-mlflow"
  engine                      = "postgres"
  engine_version              = "16"
  instance_class              = var.mlflow_database_class
  allocated_storage           = 20
  max_allocated_storage       = 100
  storage_type                = "gp3"
  storage_encrypted           = true
  kms_key_id                  = module.storage.key_arn
  db_name                     = "mlflow"
  username                    = "mlflow"
  manage_master_user_password = true # made and rotated by RDS, in Secrets Manager

  master_user_secret_kms_key_id = module.storage.key_arn

  db_subnet_group_name       = aws_db_subnet_group.mlflow[0].name
  parameter_group_name       = aws_db_parameter_group.mlflow[0].name
  vpc_security_group_ids     = [aws_security_group.database.id]
  publicly_accessible        = false
  auto_minor_version_upgrade = true
  backup_retention_period    = 7
  copy_tags_to_snapshot      = true
  deletion_protection        = false
  skip_final_snapshot        = true # `infra/destroy` takes one under a name of its own
}
