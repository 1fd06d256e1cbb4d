# A team's: several GPU types to choose from, Postgres for MLflow, alarms, a budget.
# terraform -chdir=infra apply -var-file=examples/production.tfvars -var=alarm_email=you@example.org

name                  = "pixelcnn-prod"
gpu_instance_types    = ["g6e.xlarge", "g6.xlarge", "g5.xlarge"]
max_workers           = 16
zones                 = 3
head_instance_type    = "m7i.xlarge"
mlflow_database_class = "db.t4g.small"
shard_cache           = "nvme"
alarm_email           = "ml-ops@example.org"
monthly_budget_usd    = 5000
idle_timeout_minutes  = 5
