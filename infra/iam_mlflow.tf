locals {
  mlflow_statements = concat(
    local.session_statements,
    local.metrics_statements,
    local.software_statements,
    [
      {
        Sid      = "Artifacts"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = "${module.storage.bucket_arn}/artifacts/*"
      },
      {
        Sid       = "ListArtifacts"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = module.storage.bucket_arn
        Condition = { StringLike = { "s3:prefix" = ["artifacts", "artifacts/*"] } }
      },
      {
        Sid    = "OwnPasswords"
        Effect = "Allow"
        Action = "secretsmanager:GetSecretValue"
        Resource = concat(
          [module.secrets.arns["mlflow"]],
          [for database in aws_db_instance.mlflow : database.master_user_secret[0].secret_arn],
        )
      },
    ],
  )
}
