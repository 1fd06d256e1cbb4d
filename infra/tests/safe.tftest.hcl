# What must hold of every plan, with the provider mocked: no account, no network.

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

run "defaults" {
  command = apply

  variables {
    gpu_instance_types = ["g6.xlarge", "g5.xlarge"]
    max_workers        = 7
  }

  # Nothing is public.
  assert {
    condition     = alltrue([for subnet in concat(aws_subnet.private, [aws_subnet.control]) : subnet.map_public_ip_on_launch != true])
    error_message = "A subnet gives public addresses."
  }
  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_ingress_rule.flow : rule.cidr_ipv4 == null && rule.cidr_ipv6 == null && rule.prefix_list_id == null])
    error_message = "An ingress rule names addresses instead of a group."
  }
  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_egress_rule.flow : rule.cidr_ipv4 == null && rule.cidr_ipv6 == null])
    error_message = "An egress rule names addresses."
  }
  assert {
    condition     = [for key, flow in local.flows : key if flow.port == -1] == ["nodes-nodes"]
    error_message = "More than head and workers among themselves is open on every port."
  }
  assert {
    condition     = alltrue([for database in aws_db_instance.mlflow : database.publicly_accessible == false && database.storage_encrypted])
    error_message = "The database is public or not encrypted."
  }

  # Machines are closed and their disks encrypted.
  assert {
    condition = alltrue([for machine in [aws_instance.head, aws_instance.mlflow] :
    machine.metadata_options[0].http_tokens == "required" && machine.metadata_options[0].http_put_response_hop_limit == 1 && machine.root_block_device[0].encrypted && machine.key_name != "ssh"])
    error_message = "Head or MLflow server: IMDSv1, or a disk that isn't encrypted."
  }
  assert {
    condition     = aws_launch_template.worker.metadata_options[0].http_tokens == "required"
    error_message = "Workers answer IMDSv1."
  }
  assert {
    condition     = alltrue([for disk in aws_launch_template.worker.block_device_mappings : disk.ebs[0].encrypted == "true" && disk.ebs[0].delete_on_termination == "true"])
    error_message = "A worker's disk isn't encrypted, or outlives it."
  }
  assert {
    condition     = aws_launch_template.worker.instance_initiated_shutdown_behavior == "terminate" && aws_instance.head.instance_initiated_shutdown_behavior == "stop"
    error_message = "A worker that shuts itself down would go on costing, or a head would lose its disk."
  }

  # User data holds no secret.
  assert {
    condition     = alltrue([for role, text in local.user_data : length(text) < 16384])
    error_message = "User data is longer than EC2's 16 KB."
  }
  assert {
    condition     = alltrue([for role, text in local.user_data : length(regexall("(?i)(password|token)=", text)) == 0])
    error_message = "User data sets a password or a token."
  }

  # The autoscaler's file has every key, and prefers by order.
  assert {
    condition = toset(keys(yamldecode(aws_s3_object.autoscaler.content))) == toset([
      "cluster_name", "max_workers", "upscaling_speed", "idle_timeout_minutes", "provider", "head_node_type",
      "available_node_types", "auth", "docker", "file_mounts", "file_mounts_sync_continuously", "cluster_synced_files",
      "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands", "head_setup_commands",
      "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    ])
    error_message = "A key that Ray's monitor wants is missing, or one more is there."
  }
  assert {
    condition     = local.autoscaler.available_node_types["g6.xlarge"].priority > local.autoscaler.available_node_types["g5.xlarge"].priority
    error_message = "The first instance type isn't preferred."
  }
  assert {
    condition     = local.autoscaler.available_node_types["g6.xlarge"].resources.GPU == 1 && local.autoscaler.available_node_types["g6.xlarge"].max_workers == 7
    error_message = "GPUs or max_workers don't reach the autoscaler."
  }
  assert {
    condition     = local.autoscaler.available_node_types["g6.xlarge"].node_config.InstanceMarketOptions.MarketType == "spot"
    error_message = "Spot is the default and isn't asked for."
  }

  # Alarms: the head, disks, and GPUs that idle for an hour.
  assert {
    condition     = toset(keys(aws_cloudwatch_metric_alarm.this)) == toset(["head-machine", "head-ray", "head-disk", "worker-disk", "mlflow-machine", "gpu-idle"])
    error_message = "An alarm is missing, or one more is there."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["gpu-idle"].period * aws_cloudwatch_metric_alarm.this["gpu-idle"].evaluation_periods == 3600 && aws_cloudwatch_metric_alarm.this["gpu-idle"].statistic == "Maximum"
    error_message = "GPUs count as idle after another time than an hour, or while one of them works."
  }
  assert {
    condition     = alltrue([for name in ["head-machine", "head-ray"] : aws_cloudwatch_metric_alarm.this[name].treat_missing_data == "breaching"])
    error_message = "A head that reports nothing wouldn't raise its alarm."
  }

  # The cost of idling is the sum of its parts.
  assert {
    condition     = abs(output.idle_usd_per_hour_total - sum(values(output.idle_usd_per_hour))) < 0.000001
    error_message = "The total isn't the sum."
  }
  assert {
    condition     = output.idle_usd_per_hour.interfaces == length(aws_vpc_endpoint.service) * var.prices.interface_endpoint_hour
    error_message = "Interface endpoints aren't all counted."
  }
  assert {
    condition     = abs(output.worker_usd_per_hour["g6.xlarge"].on_demand - 0.8048 - 150 * 0.08 / 730) < 0.000001 && output.worker_usd_per_hour["g5.xlarge"].spot < output.worker_usd_per_hour["g5.xlarge"].on_demand / 2
    error_message = "A worker's price isn't that of its instance and its disk."
  }
}

run "everything_else_than_the_defaults" {
  command = apply

  variables {
    spot                  = false
    efa                   = true
    placement_group       = true
    mlflow_database_class = ""
    head_instance_type    = "r7i.48xlarge"
    monthly_budget_usd    = 200
    alarm_email           = "ops@example.org"
    idle_guard_hours      = 2
    workers_may_prepare   = true
  }

  # On demand, close together, in one zone.
  assert {
    condition     = !contains(keys(local.worker_node_config), "InstanceMarketOptions")
    error_message = "spot = false still asks for spot."
  }
  assert {
    condition     = length(local.worker_node_config.SubnetIds) == 1 && local.worker_node_config.NetworkInterfaces[0].InterfaceType == "efa"
    error_message = "EFA needs its interface and one zone."
  }
  assert {
    condition     = length(aws_launch_template.worker.placement) == 1
    error_message = "The placement group isn't in the template."
  }

  # No database.
  assert {
    condition     = length(aws_db_instance.mlflow) == 0 && output.mlflow_database == "" && output.idle_usd_per_hour.database == 0
    error_message = "An empty mlflow_database_class still makes or counts a database."
  }

  # A type without a price.
  assert {
    condition     = output.idle_usd_per_hour_total == null
    error_message = "A type without a price was counted as free."
  }

  # A budget, and somebody who is told.
  assert {
    condition     = length(aws_budgets_budget.month) == 1 && length(aws_sns_topic_subscription.email) == 1
    error_message = "Budget or subscription is missing."
  }

  # The idle guard, and workers that write shards.
  assert {
    condition     = strcontains(local.user_data.head, "PIXELCNN_IDLE_GUARD_HOURS=2\n")
    error_message = "The idle guard's hours don't reach the head."
  }
  assert {
    condition     = contains([for statement in local.worker_statements : statement.Sid], "WriteShards")
    error_message = "workers_may_prepare doesn't let workers write shards."
  }
}
