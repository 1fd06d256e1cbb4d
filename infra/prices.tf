# What things cost, to be set to the day's and region's prices; docs/cost.md is reckoned from these.

variable "prices" {
  description = "US dollars. instance: on demand, by type and hour; spot_share: what part of it a spot instance costs; the others as their names say."
  type = object({
    date                    = string
    region                  = string
    instance_hour           = map(number)
    spot_share              = number
    database_hour           = map(number)
    interface_endpoint_hour = number
    disk_gigabyte_month     = number
    database_gigabyte_month = number
    key_month               = number
    secret_month            = number
    alarm_month             = number
  })
  default = {
    date   = "2025-06"
    region = "us-east-1"
    instance_hour = {
      "m7i.large" = 0.1008, "m7i.xlarge" = 0.2016, "t3.medium" = 0.0416, "t3.small" = 0.0208
      "g6.xlarge" = 0.8048, "g5.xlarge" = 1.006, "g6e.xlarge" = 1.861
    }
    spot_share              = 0.4
    database_hour           = { "db.t4g.micro" = 0.016, "db.t4g.small" = 0.032, "" = 0 }
    interface_endpoint_hour = 0.01
    disk_gigabyte_month     = 0.08
    database_gigabyte_month = 0.115
    key_month               = 1
    secret_month            = 0.4
    alarm_month             = 0.1
  }
}

locals {
  hours_a_month = 730
  secrets_count = length(module.secrets.names) + (var.mlflow_database_class == "" ? 0 : 1)

  # null where the price of a chosen type isn't in var.prices.
  idle_usd_per_hour = {
    head       = lookup(var.prices.instance_hour, var.head_instance_type, null)
    mlflow     = lookup(var.prices.instance_hour, var.mlflow_instance_type, null)
    database   = lookup(var.prices.database_hour, var.mlflow_database_class, null)
    interfaces = length(local.services) * var.prices.interface_endpoint_hour
    disks      = (100 + 40) * var.prices.disk_gigabyte_month / local.hours_a_month
    storage    = (var.mlflow_database_class == "" ? 0 : 20) * var.prices.database_gigabyte_month / local.hours_a_month
    rest       = (var.prices.key_month + local.secrets_count * var.prices.secret_month + length(local.alarms) * var.prices.alarm_month) / local.hours_a_month
  }

  # By type: on demand and spot, each with its disk; null where var.prices lacks the type.
  worker_usd_per_hour = {
    for type in var.gpu_instance_types : type => {
      for market, share in { on_demand = 1, spot = var.prices.spot_share } : market => try(
        var.prices.instance_hour[type] * share + local.worker_disk * var.prices.disk_gigabyte_month / local.hours_a_month, null
      )
    }
  }
}
