variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "AWS account, part of the bucket's name."
  type        = string
}

variable "partition" {
  description = "AWS partition of the ARNs."
  type        = string
}
