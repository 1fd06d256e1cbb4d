# What is right as it stands for a first cluster.

variable "idle_timeout_minutes" {
  description = "Minutes without work after which a worker is ended."
  type        = number
  default     = 10

  validation {
    condition     = var.idle_timeout_minutes > 0
    error_message = "idle_timeout_minutes ${var.idle_timeout_minutes}: must be above 0."
  }
}

variable "idle_guard_hours" {
  description = "Hours without a running job after which the head stops itself (its disk is kept; `infra/connect` starts it again); 0: never."
  type        = number
  default     = 0

  validation {
    condition     = var.idle_guard_hours >= 0
    error_message = "idle_guard_hours ${var.idle_guard_hours}: 0 or more."
  }
}

variable "monthly_budget_usd" {
  description = "Budget of the whole account's month; alarm_email is told at 80% and when the forecast exceeds it; 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.monthly_budget_usd >= 0 && (var.monthly_budget_usd == 0 || var.alarm_email != "")
    error_message = "monthly_budget_usd ${var.monthly_budget_usd}: 0 or more, and alarm_email must say who is told."
  }
}

variable "head_instance_type" {
  description = "Instance type of the head (Ray's head, jobs' drivers, Prometheus, Grafana)."
  type        = string
  default     = "m7i.large"
}

variable "mlflow_instance_type" {
  description = "Instance type of the MLflow server."
  type        = string
  default     = "t3.medium"
}

variable "mlflow_database_class" {
  description = "RDS class of MLflow's Postgres; empty: a sqlite file on the MLflow server's disk, which goes with the server."
  type        = string
  default     = "db.t4g.micro"

  validation {
    condition     = var.mlflow_database_class == "" || startswith(var.mlflow_database_class, "db.")
    error_message = "mlflow_database_class ${var.mlflow_database_class}: write it like db.t4g.micro, or leave it empty for sqlite."
  }
}

variable "shard_cache" {
  description = "nvme: workers keep shards on their instance store, mounted at /mnt/shards (give jobs --data.cache-folder /mnt/shards); none: no cache."
  type        = string
  default     = "nvme"

  validation {
    condition     = contains(["nvme", "none"], var.shard_cache)
    error_message = "shard_cache ${var.shard_cache}: nvme or none."
  }
}

variable "placement_group" {
  description = "Keep workers close together in one zone: lower latency between them, less capacity to choose from."
  type        = bool
  default     = false
}

variable "efa" {
  description = "Give workers an Elastic Fabric Adapter; only for instance types that have one, and in one zone."
  type        = bool
  default     = false
}

variable "workers_may_prepare" {
  description = "Let workers write data/ too, so that `jobs.prepare` can run as tasks on them; else they only read it."
  type        = bool
  default     = false
}

variable "zones" {
  description = "How many availability zones workers may run in."
  type        = number
  default     = 2

  validation {
    condition     = var.zones >= 2 && var.zones <= 6
    error_message = "zones ${var.zones}: 2 to 6; RDS wants two."
  }
}

variable "vpc_cidr" {
  description = "Private addresses of the network, a /16."
  type        = string
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && endswith(var.vpc_cidr, "/16")
    error_message = "vpc_cidr ${var.vpc_cidr}: a /16, like 10.64.0.0/16."
  }
}

variable "images" {
  description = "Machine images: an image's id, or the name of a public SSM parameter that holds one. Ubuntu 24.04; the worker's with NVIDIA's driver."
  type        = object({ head = string, worker = string })
  default = {
    head   = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    worker = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
  }

  validation {
    condition     = alltrue([for image in values(var.images) : startswith(image, "ami-") || startswith(image, "/")])
    error_message = "images: each is ami-... or an SSM parameter's name that begins with a slash."
  }
}

variable "node_environment" {
  description = "More environment variables for everything on the nodes. Not for secrets: they stand in user data."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.node_environment : can(regex("^[A-Za-z_][A-Za-z0-9_]*=[-A-Za-z0-9_./:,@=+]*$", "${key}=${value}"))])
    error_message = "node_environment: names of letters, digits and _, values of letters, digits and -_./:,@=+ only."
  }
}

variable "kept_storage" {
  description = "Bucket and key that an earlier `infra/destroy` kept, taken over instead of made; it writes them to kept.auto.tfvars.json."
  type        = object({ bucket = string, key_id = string, alias = string, region = string })
  default     = null
}

variable "own_secrets" {
  description = "ARNs of secrets that you made yourself, instead of ones made by AWS: keys ray-token, mlflow, grafana."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(var.own_secrets) == 0 || toset(keys(var.own_secrets)) == toset(["ray-token", "mlflow", "grafana"])
    error_message = "own_secrets [${join(", ", keys(var.own_secrets))}]: all of ray-token, mlflow and grafana, or none."
  }
}
