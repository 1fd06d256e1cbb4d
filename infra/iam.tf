# What each kind of machine may do. The policies stand beside one another in iam_*.tf; tests/infra/test_iam.py asks them.

locals {
  arn  = "arn:${data.aws_partition.current.partition}"
  here = "${var.region}:${data.aws_caller_identity.current.account_id}"

  roles = toset(["head", "worker", "mlflow"])

  statements = {
    head   = local.head_statements
    worker = local.worker_statements
    mlflow = local.mlflow_statements
  }

  # Session Manager on the machine itself, without the managed policy's leave to read every SSM parameter.
  session_statements = [{
    Sid    = "PeopleComeInThroughSessionManager"
    Effect = "Allow"
    Action = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel",
      "ec2messages:AcknowledgeMessage", "ec2messages:DeleteMessage", "ec2messages:FailMessage",
      "ec2messages:GetEndpoint", "ec2messages:GetMessages", "ec2messages:SendReply",
    ]
    Resource = "*"
  }]

  metrics_statements = [{
    Sid       = "OwnMetrics"
    Effect    = "Allow"
    Action    = "cloudwatch:PutMetricData"
    Resource  = "*"
    Condition = { StringEquals = { "cloudwatch:namespace" = local.metrics_namespace } }
  }]

  software_statements = [
    {
      Sid      = "Software"
      Effect   = "Allow"
      Action   = "s3:GetObject"
      Resource = "${module.storage.bucket_arn}/software/*"
    },
    {
      Sid       = "KeyOfBucketAndSecrets"
      Effect    = "Allow"
      Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource  = module.storage.key_arn
      Condition = { StringEquals = { "kms:ViaService" = ["s3.${var.region}.amazonaws.com", "secretsmanager.${var.region}.amazonaws.com"] } }
    },
  ]

  # Training reads shards and writes checkpoints and samples.
  training_statements = [
    {
      Sid      = "ReadShards"
      Effect   = "Allow"
      Action   = "s3:GetObject"
      Resource = "${module.storage.bucket_arn}/data/*"
    },
    {
      Sid      = "ReadAndWriteRuns"
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
      Resource = "${module.storage.bucket_arn}/runs/*"
    },
    {
      Sid       = "ListShardsAndRuns"
      Effect    = "Allow"
      Action    = "s3:ListBucket"
      Resource  = module.storage.bucket_arn
      Condition = { StringLike = { "s3:prefix" = ["data", "data/*", "runs", "runs/*"] } }
    },
    {
      Sid      = "TokenAndTracking"
      Effect   = "Allow"
      Action   = "secretsmanager:GetSecretValue"
      Resource = [for name in ["ray-token", "mlflow"] : module.secrets.arns[name]]
    },
  ]

  prepare_statements = [{
    Sid      = "WriteShards"
    Effect   = "Allow"
    Action   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    Resource = "${module.storage.bucket_arn}/data/*"
  }]
}

resource "aws_iam_role" "node" {
  for_each = local.roles

  name = "${var.name}-${var.region}-${each.key}"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "node" {
  for_each = local.roles

  name = each.key
  role = aws_iam_role.node[each.key].id

  policy = jsonencode({ Version = "2012-10-17", Statement = local.statements[each.key] })
}

resource "aws_iam_instance_profile" "node" {
  for_each = local.roles

  name = aws_iam_role.node[each.key].name
  role = aws_iam_role.node[each.key].name
}
