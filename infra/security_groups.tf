# Who may talk to whom. No rule names an address: nothing outside these groups gets in.

resource "aws_security_group" "nodes" {
  name        = "${var.name}-nodes"
  description = "Head and workers: Ray binds its ports to every interface, so only they may reach each other"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-nodes" }
}

resource "aws_security_group" "mlflow" {
  name        = "${var.name}-mlflow"
  description = "MLflow server: port 5000 for head and workers"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-mlflow" }
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "MLflow database: port 5432 for the MLflow server"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-database" }
}

resource "aws_security_group" "endpoints" {
  name        = "${var.name}-endpoints"
  description = "Interfaces of AWS services: port 443 for the nodes and the MLflow server"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-endpoints" }
}

locals {
  # from -> to, one port of TCP; -1 is everything.
  flows = {
    nodes-nodes      = { from = aws_security_group.nodes.id, to = aws_security_group.nodes.id, port = -1 }
    nodes-mlflow     = { from = aws_security_group.nodes.id, to = aws_security_group.mlflow.id, port = 5000 }
    nodes-endpoints  = { from = aws_security_group.nodes.id, to = aws_security_group.endpoints.id, port = 443 }
    mlflow-endpoints = { from = aws_security_group.mlflow.id, to = aws_security_group.endpoints.id, port = 443 }
    mlflow-database  = { from = aws_security_group.mlflow.id, to = aws_security_group.database.id, port = 5432 }
  }
}

resource "aws_vpc_security_group_ingress_rule" "flow" {
  for_each = local.flows

  security_group_id            = each.value.to
  referenced_security_group_id = each.value.from
  description                  = each.key
  ip_protocol                  = each.value.port == -1 ? "-1" : "tcp"
  from_port                    = each.value.port == -1 ? null : each.value.port
  to_port                      = each.value.port == -1 ? null : each.value.port
}

resource "aws_vpc_security_group_egress_rule" "flow" {
  for_each = local.flows

  security_group_id            = each.value.from
  referenced_security_group_id = each.value.to
  description                  = each.key
  ip_protocol                  = each.value.port == -1 ? "-1" : "tcp"
  from_port                    = each.value.port == -1 ? null : each.value.port
  to_port                      = each.value.port == -1 ? null : each.value.port
}

resource "aws_vpc_security_group_egress_rule" "s3" {
  for_each = { nodes = aws_security_group.nodes.id, mlflow = aws_security_group.mlflow.id }

  security_group_id = each.value
  prefix_list_id    = aws_vpc_endpoint.s3.prefix_list_id
  description       = "${each.key}-s3"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
