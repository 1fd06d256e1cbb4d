# Private subnets without a route to the internet, in either direction. S3 is reached through a gateway, the few other
# services through interfaces; people come in through Session Manager alone.

locals {
  zones = slice(data.aws_availability_zones.here.names, 0, var.zones)

  # What the nodes call: SSM's three, secrets, the autoscaler's EC2, the alarms' metrics.
  services = toset(["ssm", "ssmmessages", "ec2messages", "secretsmanager", "ec2", "monitoring"])

  control_cidr   = cidrsubnet(var.vpc_cidr, 8, 255)
  head_address   = cidrhost(local.control_cidr, 10)
  mlflow_address = cidrhost(local.control_cidr, 11)
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:no route leads in or out, so flow logs would cost more than they could tell
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = { Name = var.name }
}

resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id
}

resource "aws_subnet" "private" {
  count = var.zones

  vpc_id            = aws_vpc.this.id
  availability_zone = local.zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, count.index)

  tags = { Name = "${var.name}-${local.zones[count.index]}" }
}

# For the machines of fixed address alone, so that nothing else is given theirs while one is being replaced.
resource "aws_subnet" "control" {
  vpc_id            = aws_vpc.this.id
  availability_zone = local.zones[0]
  cidr_block        = local.control_cidr

  tags = { Name = "${var.name}-control" }
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.this.id

  tags = { Name = var.name }
}

resource "aws_route_table_association" "private" {
  count = var.zones

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private.id
}

resource "aws_route_table_association" "control" {
  subnet_id      = aws_subnet.control.id
  route_table_id = aws_route_table.private.id
}

resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  vpc_endpoint_type = "Gateway"
  service_name      = "com.amazonaws.${var.region}.s3"
  route_table_ids   = [aws_route_table.private.id]

  # Nodes reach this bucket and no other one: nothing is carried away into somebody else's.
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [module.storage.bucket_arn, "${module.storage.bucket_arn}/*"]
    }]
  })

  tags = { Name = "${var.name}-s3" }
}

# In the first zone alone: an interface costs by zone and hour, and workers of other zones reach it there.
resource "aws_vpc_endpoint" "service" {
  for_each = local.services

  vpc_id              = aws_vpc.this.id
  vpc_endpoint_type   = "Interface"
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  subnet_ids          = [aws_subnet.private[0].id]
  security_group_ids  = [aws_security_group.endpoints.id]
  private_dns_enabled = true

  tags = { Name = "${var.name}-${each.key}" }
}
