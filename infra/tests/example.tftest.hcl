# Planned with each of examples/*.tfvars by tests/infra/test_terraform.py, and with the defaults by `terraform test`.

mock_provider "aws" {
  source = "./tests/mocks"
}

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
  own_secrets     = { ray-token = "arn:aws:secretsmanager:::a", mlflow = "arn:aws:secretsmanager:::b", grafana = "arn:aws:secretsmanager:::c" }
}

run "its_cost_is_known" {
  command = plan

  assert {
    condition     = output.idle_usd_per_hour_total > 0 && alltrue([for price in values(output.worker_usd_per_hour) : price.spot > 0])
    error_message = "var.prices lacks a type of the example."
  }
  assert {
    condition     = length(local.autoscaler.available_node_types) == length(var.gpu_instance_types) + 1
    error_message = "Not every GPU type became a node type."
  }
}
