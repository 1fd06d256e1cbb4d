# What each kind of machine runs at its first boot. No secret is among it.

locals {
  common_environment = merge(
    {
      PIXELCNN_CLUSTER         = var.name
      PIXELCNN_BUCKET          = module.storage.bucket
      PIXELCNN_SOFTWARE_SHA256 = var.software_sha256
      PIXELCNN_METRICS         = local.metrics_namespace
      PIXELCNN_HEAD_ADDRESS    = local.head_address
      PIXELCNN_RAY_SECRET      = module.secrets.names["ray-token"]
      PIXELCNN_MLFLOW_SECRET   = module.secrets.names["mlflow"]
      AWS_DEFAULT_REGION       = var.region
      MLFLOW_TRACKING_URI      = "http://${local.mlflow_address}:5000"
    },
    var.node_environment,
  )

  role_environment = {
    head = {
      PIXELCNN_AUTOSCALER       = local.autoscaler_key
      PIXELCNN_GRAFANA_SECRET   = module.secrets.names["grafana"]
      PIXELCNN_IDLE_GUARD_HOURS = tostring(var.idle_guard_hours)
    }
    worker = {
      PIXELCNN_SHARD_CACHE = var.shard_cache
    }
    mlflow = {
      PIXELCNN_DATABASE_HOST   = try(aws_db_instance.mlflow[0].address, "")
      PIXELCNN_DATABASE_SECRET = try(aws_db_instance.mlflow[0].master_user_secret[0].secret_arn, "")
    }
  }

  user_data = {
    for role, environment in local.role_environment : role => templatefile("${path.module}/templates/boot.sh.tftpl", {
      role        = role
      environment = merge({ PIXELCNN_ROLE = role }, local.common_environment, environment)
      fetch       = file("${path.module}/templates/fetch.py")
    })
  }
}
