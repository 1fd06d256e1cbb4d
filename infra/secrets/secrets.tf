# Made by AWS and written straight into Secrets Manager: no value passes through the state, a plan, user data or a log.

locals {
  secrets = { for key, secret in local.wanted : key => secret if length(var.own) == 0 }

  wanted = {
    ray-token = { length = 64, description = "Token of Ray's cluster: whoever has it can run code on the nodes" }
    mlflow    = { length = 40, description = "Password of MLflow's user admin" }
    grafana   = { length = 40, description = "Password of Grafana's user admin" }
  }
}

ephemeral "aws_secretsmanager_random_password" "made" {
  for_each = local.secrets

  password_length     = each.value.length
  exclude_punctuation = true # they go into HTTP headers, configuration files and URLs
}

resource "aws_secretsmanager_secret" "made" {
  for_each = local.secrets

  #checkov:skip=CKV2_AWS_57:a new token needs every node restarted, so rotating is a person's decision: see infra/README.md
  name                    = "${var.name}/${each.key}"
  description             = each.value.description
  kms_key_id              = var.key_arn
  recovery_window_in_days = 0 # a destroyed cluster's name can be used again at once
}

resource "aws_secretsmanager_secret_version" "made" {
  for_each = local.secrets

  secret_id                = aws_secretsmanager_secret.made[each.key].id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.made[each.key].random_password
  secret_string_wo_version = 1
}
