# The template from which the autoscaler starts workers. Instance type, zone and spot are the autoscaler's to choose.

locals {
  worker_disk = 150 # GB
}

resource "aws_launch_template" "worker" {
  name                                 = "${var.name}-worker"
  image_id                             = local.image_ids.worker
  user_data                            = base64encode(local.user_data.worker)
  vpc_security_group_ids               = var.efa ? null : [aws_security_group.nodes.id]
  ebs_optimized                        = true
  instance_initiated_shutdown_behavior = "terminate" # a worker that has lost its head shuts itself down
  update_default_version               = true

  iam_instance_profile {
    name = aws_iam_instance_profile.node["worker"].name
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_size           = local.worker_disk
      volume_type           = "gp3"
      throughput            = 500 # installing the wheels waits for the disk
      encrypted             = true
      kms_key_id            = module.storage.key_arn
      delete_on_termination = true
    }
  }

  dynamic "placement" {
    for_each = aws_placement_group.workers

    content {
      group_name = placement.value.name
    }
  }
}

resource "aws_placement_group" "workers" {
  count = var.placement_group ? 1 : 0

  name     = "${var.name}-workers"
  strategy = "cluster"
}
