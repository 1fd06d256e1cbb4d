# What most people set.

variable "region" {
  description = "AWS region of everything."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region ${var.region}: not a region's name; write it like us-east-1."
  }
}

variable "name" {
  description = "Name of the cluster: prefix of every resource, and the tag by which autoscaled workers are found."
  type        = string
  default     = "pixelcnn"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "name ${var.name}: 2 to 20 small letters, digits and hyphens, a letter first."
  }
}

variable "gpu_instance_types" {
  description = "Instance types of the workers, the preferred one first; the next is taken where there is no capacity."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge"]

  validation {
    condition     = length(var.gpu_instance_types) > 0 && length(distinct(var.gpu_instance_types)) == length(var.gpu_instance_types)
    error_message = "gpu_instance_types [${join(", ", var.gpu_instance_types)}]: at least one, each once."
  }
}

variable "max_workers" {
  description = "Most workers at any time; there are none when nothing runs."
  type        = number
  default     = 4

  validation {
    condition     = var.max_workers >= 1 && var.max_workers <= 500 && floor(var.max_workers) == var.max_workers
    error_message = "max_workers ${var.max_workers}: a whole number from 1 to 500."
  }
}

variable "spot" {
  description = "Ask for spot instances first, and for on-demand ones where there is no spot capacity."
  type        = bool
  default     = true
}

variable "alarm_email" {
  description = "Who is told of alarms and of the budget; empty: nobody."
  type        = string
  default     = ""

  validation {
    condition     = var.alarm_email == "" || can(regex("^[^@ ]+@[^@ ]+$", var.alarm_email))
    error_message = "alarm_email ${var.alarm_email}: not an e-mail address; leave it empty to tell nobody."
  }
}

variable "software_sha256" {
  description = "Which software the nodes install; `infra/software build` writes it to software.auto.tfvars.json."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.software_sha256))
    error_message = "software_sha256 '${var.software_sha256}': 64 hexadecimal digits; run `infra/software build`."
  }
}
