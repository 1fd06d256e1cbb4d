# A bad value is refused before anything is made.

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

run "region" {
  command = plan

  variables {
    region = "useast1"
  }

  expect_failures = [var.region]
}

run "name" {
  command = plan

  variables {
    name = "Big_Name"
  }

  expect_failures = [var.name]
}

run "no_types" {
  command = plan

  variables {
    gpu_instance_types = []
  }

  expect_failures = [var.gpu_instance_types]
}

run "type_twice" {
  command = plan

  variables {
    gpu_instance_types = ["g6.xlarge", "g6.xlarge"]
  }

  expect_failures = [var.gpu_instance_types]
}

run "half_a_worker" {
  command = plan

  variables {
    max_workers = 1.5
  }

  expect_failures = [var.max_workers]
}

run "no_worker" {
  command = plan

  variables {
    max_workers = 0
  }

  expect_failures = [var.max_workers]
}

run "email" {
  command = plan

  variables {
    alarm_email = "nobody"
  }

  expect_failures = [var.alarm_email]
}

run "software" {
  command = plan

  variables {
    software_sha256 = "latest"
  }

  expect_failures = [var.software_sha256]
}

run "idle_timeout" {
  command = plan

  variables {
    idle_timeout_minutes = 0
  }

  expect_failures = [var.idle_timeout_minutes]
}

run "idle_guard" {
  command = plan

  variables {
    idle_guard_hours = -1
  }

  expect_failures = [var.idle_guard_hours]
}

run "budget_without_mail" {
  command = plan

  variables {
    monthly_budget_usd = 100
  }

  expect_failures = [var.monthly_budget_usd]
}

run "database" {
  command = plan

  variables {
    mlflow_database_class = "t3.micro"
  }

  expect_failures = [var.mlflow_database_class]
}

run "cache" {
  command = plan

  variables {
    shard_cache = "ram"
  }

  expect_failures = [var.shard_cache]
}

run "one_zone" {
  command = plan

  variables {
    zones = 1
  }

  expect_failures = [var.zones]
}

run "network" {
  command = plan

  variables {
    vpc_cidr = "10.0.0.0/20"
  }

  expect_failures = [var.vpc_cidr]
}

run "image" {
  command = plan

  variables {
    images = { head = "ubuntu", worker = "ami-1" }
  }

  expect_failures = [var.images]
}

run "shell_in_environment" {
  command = plan

  variables {
    node_environment = { A = "$(reboot)" }
  }

  expect_failures = [var.node_environment]
}
