# The head starts workers from its own launch template, in its own subnets, under its own tags, and ends only those.

locals {
  worker_tags = { "ray-cluster-name" = var.name, "ray-node-type" = "worker" }

  head_statements = concat(
    local.session_statements,
    local.metrics_statements,
    local.software_statements,
    local.training_statements,
    local.prepare_statements,
    [
      {
        Sid      = "OwnConfiguration"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "${module.storage.bucket_arn}/config/*"
      },
      {
        Sid      = "GrafanasPassword"
        Effect   = "Allow"
        Action   = "secretsmanager:GetSecretValue"
        Resource = module.secrets.arns["grafana"]
      },
      {
        Sid      = "SeeInstances"
        Effect   = "Allow"
        Action   = ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus"]
        Resource = "*"
      },
      {
        Sid      = "RunOnlyTaggedWorkers"
        Effect   = "Allow"
        Action   = "ec2:RunInstances"
        Resource = "${local.arn}:ec2:${local.here}:instance/*"
        Condition = {
          StringEquals = merge(
            { for key, value in local.worker_tags : "aws:RequestTag/${key}" => value },
            { "ec2:InstanceType" = var.gpu_instance_types, "ec2:MetadataHttpTokens" = "required" },
          )
          ArnEquals = { "ec2:LaunchTemplate" = aws_launch_template.worker.arn }
        }
      },
      {
        Sid    = "RunFromTheTemplate"
        Effect = "Allow"
        Action = "ec2:RunInstances"
        Resource = concat(
          [aws_launch_template.worker.arn, aws_security_group.nodes.arn],
          [for subnet in aws_subnet.private : subnet.arn],
          [for group in aws_placement_group.workers : group.arn],
          [
            "${local.arn}:ec2:${var.region}::image/${local.image_ids.worker}",
            "${local.arn}:ec2:${local.here}:network-interface/*",
            "${local.arn}:ec2:${local.here}:volume/*",
            "${local.arn}:ec2:${local.here}:spot-instances-request/*",
          ],
        )
        Condition = { ArnEquals = { "ec2:LaunchTemplate" = aws_launch_template.worker.arn } }
      },
      {
        Sid    = "TagWhatIsBeingRun"
        Effect = "Allow"
        Action = "ec2:CreateTags"
        Resource = [
          "${local.arn}:ec2:${local.here}:instance/*",
          "${local.arn}:ec2:${local.here}:volume/*",
          "${local.arn}:ec2:${local.here}:spot-instances-request/*",
        ]
        Condition = { StringEquals = { "ec2:CreateAction" = "RunInstances" } }
      },
      {
        Sid       = "EndOwnWorkers"
        Effect    = "Allow"
        Action    = "ec2:TerminateInstances"
        Resource  = "${local.arn}:ec2:${local.here}:instance/*"
        Condition = { StringEquals = { for key, value in local.worker_tags : "aws:ResourceTag/${key}" => value } }
      },
      {
        Sid       = "GiveWorkersTheirRole"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = aws_iam_role.node["worker"].arn
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
      {
        Sid       = "FirstSpotRequestOfTheAccount"
        Effect    = "Allow"
        Action    = "iam:CreateServiceLinkedRole"
        Resource  = "${local.arn}:iam::${data.aws_caller_identity.current.account_id}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
        Condition = { StringEquals = { "iam:AWSServiceName" = "spot.amazonaws.com" } }
      },
      {
        Sid       = "EncryptWorkersDisks"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
        Resource  = module.storage.key_arn
        Condition = { StringEquals = { "kms:ViaService" = "ec2.${var.region}.amazonaws.com" } }
      },
      {
        Sid      = "GrantDisksTheKey"
        Effect   = "Allow"
        Action   = "kms:CreateGrant"
        Resource = module.storage.key_arn
        Condition = {
          StringEquals = { "kms:ViaService" = "ec2.${var.region}.amazonaws.com" }
          Bool         = { "kms:GrantIsForAWSResource" = "true" }
        }
      },
    ],
  )
}
