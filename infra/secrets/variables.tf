variable "name" {
  description = "Name of the cluster, prefix of the secrets' names."
  type        = string
}

variable "key_arn" {
  description = "Key that encrypts them."
  type        = string
}

variable "own" {
  description = "ARNs of secrets made elsewhere; empty: AWS makes them here."
  type        = map(string)
}
