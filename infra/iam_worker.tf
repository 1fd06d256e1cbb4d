locals {
  worker_statements = concat(
    local.session_statements,
    local.metrics_statements,
    local.software_statements,
    local.training_statements,
    [for statement in local.prepare_statements : statement if var.workers_may_prepare],
  )
}
