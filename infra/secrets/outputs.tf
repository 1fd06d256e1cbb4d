# Secrets Manager takes an ARN wherever it takes a name.
output "names" {
  description = "Names in Secrets Manager, by what they are for."
  value       = length(var.own) > 0 ? var.own : { for key, secret in aws_secretsmanager_secret.made : key => secret.name }
}

output "arns" {
  description = "ARNs, by what they are for."
  value       = length(var.own) > 0 ? var.own : { for key, secret in aws_secretsmanager_secret.made : key => secret.arn }
}
