# A bad value is refused before anything is made: each plan sets several, and each of them must be named, no other one.

mock_provider "aws" {
  source = "./tests/mocks"
}

# Not mocked and never called: with own_secrets no secret is made. Terraform can't mock ephemeral resources.
provider "aws" {
  alias                       = "secrets"
  region                      = "us-east-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}

variables {
  software_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"

  own_secrets = { ray-token = "arn:aws:secretsmanager:::a", mlflow = "arn:aws:secretsmanager:::b", grafana = "arn:aws:secretsmanager:::c" }
}

run "what_most_people_set" {
  command = plan

  variables {
    region             = "useast1"
    name               = "Big_Name"
    gpu_instance_types = []
    max_workers        = 1.5
    alarm_email        = "nobody"
    software_sha256    = "latest"
  }

  expect_failures = [
    var.region, var.name, var.gpu_instance_types, var.max_workers, var.alarm_email, var.software_sha256,
  ]
}

run "the_rest" {
  command = plan

  variables {
    gpu_instance_types    = ["g6.xlarge", "g6.xlarge"]
    max_workers           = 0
    idle_timeout_minutes  = 0
    idle_guard_hours      = -1
    monthly_budget_usd    = 100 # and nobody to tell
    mlflow_database_class = "t3.micro"
    shard_cache           = "ram"
    zones                 = 1
    vpc_cidr              = "10.0.0.0/20"
    images                = { head = "ubuntu", worker = "ami-1" }
    node_environment      = { A = "$(reboot)" }
    own_secrets           = { ray-token = "arn:aws:secretsmanager:::a" }
  }

  expect_failures = [
    var.gpu_instance_types, var.max_workers, var.idle_timeout_minutes, var.idle_guard_hours, var.monthly_budget_usd,
    var.mlflow_database_class, var.shard_cache, var.zones, var.vpc_cidr, var.images, var.node_environment,
    var.own_secrets,
  ]
}
