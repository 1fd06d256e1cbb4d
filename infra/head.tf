# Ray's head, at an address that doesn't change with the instance: workers' user data names it.

resource "aws_instance" "head" {
  #checkov:skip=CKV_AWS_126:metrics of a minute come from nodes/metrics.py; EC2's own of five minutes are enough beside them
  ami                                  = local.image_ids.head
  instance_type                        = var.head_instance_type
  iam_instance_profile                 = aws_iam_instance_profile.node["head"].name
  user_data                            = local.user_data.head
  user_data_replace_on_change          = true # other software: head and workers must have the same
  ebs_optimized                        = true
  instance_initiated_shutdown_behavior = "stop"

  subnet_id              = aws_subnet.control.id
  private_ip             = local.head_address
  vpc_security_group_ids = [aws_security_group.nodes.id]

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    volume_size = 100
    volume_type = "gp3"
    encrypted   = true
    kms_key_id  = module.storage.key_arn
  }

  tags = {
    Name                 = "${var.name}-head"
    "ray-cluster-name"   = var.name
    "ray-node-type"      = "head"
    "ray-user-node-type" = "head"
  }

  depends_on = [aws_iam_role_policy.node, module.secrets, aws_vpc_endpoint.service]

  lifecycle {
    ignore_changes = [ami] # a newer image of the same Ubuntu is no reason to end what runs
  }
}
