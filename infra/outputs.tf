output "region" {
  description = "Region of the cluster."
  value       = var.region
}

output "name" {
  description = "Name of the cluster."
  value       = var.name
}

output "bucket" {
  description = "The bucket: s3://BUCKET/data for data.url, s3://BUCKET/runs for run.url."
  value       = module.storage.bucket
}

output "storage" {
  description = "What `infra/destroy` keeps unless told to delete it."
  value = {
    bucket = module.storage.bucket
    key_id = module.storage.key_id
    alias  = module.storage.key_alias
    region = var.region
  }
}

output "head_instance_id" {
  description = "Instance of the head, for Session Manager."
  value       = aws_instance.head.id
}

output "mlflow_instance_id" {
  description = "Instance of the MLflow server, for Session Manager."
  value       = aws_instance.mlflow.id
}

output "mlflow_database" {
  description = "RDS instance of MLflow; empty: sqlite on the server's disk."
  value       = try(aws_db_instance.mlflow[0].identifier, "")
}

output "secrets" {
  description = "Names in Secrets Manager."
  value       = module.secrets.names
}

output "software_sha256" {
  description = "The software that the nodes wait for; `infra/software upload` brings it."
  value       = var.software_sha256
}

output "idle_usd_per_hour" {
  description = "What runs when nothing runs, by part, at var.prices; storage in the bucket and traffic come on top."
  value       = local.idle_usd_per_hour
}

output "idle_usd_per_hour_total" {
  description = "Sum of idle_usd_per_hour; null where var.prices lacks a chosen type."
  value       = contains([for part in values(local.idle_usd_per_hour) : part == null], true) ? null : sum(values(local.idle_usd_per_hour))
}

output "worker_usd_per_hour" {
  description = "What a worker costs while it runs, by type, on demand and as a spot instance, at var.prices."
  value       = local.worker_usd_per_hour
}

output "prices_as_of" {
  description = "Date and region of var.prices."
  value       = "${var.prices.date} ${var.prices.region}"
}
