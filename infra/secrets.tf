module "secrets" {
  source    = "./secrets"
  providers = { aws = aws.secrets }

  name    = var.name
  key_arn = module.storage.key_arn
  own     = var.own_secrets
}
