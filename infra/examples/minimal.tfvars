# The least that trains: one zone's worth of small machines, no database of its own, at most two workers.
# terraform -chdir=infra apply -var-file=examples/minimal.tfvars

gpu_instance_types    = ["g6.xlarge"]
max_workers           = 2
mlflow_instance_type  = "t3.small"
mlflow_database_class = "" # MLflow's runs in sqlite on its own disk: lost with the server
idle_guard_hours      = 8
