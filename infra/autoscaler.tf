# The configuration of Ray's autoscaler. The head reads it from the bucket again and again, so a change of max_workers or
# of instance types needs no restart. Every key stands here: one that lacks ends the autoscaler while Ray runs on.

data "aws_ec2_instance_type" "worker" {
  for_each = toset(var.gpu_instance_types)

  instance_type = each.key
}

locals {
  autoscaler_key = "config/autoscaler.yaml"

  # A placement group and an EFA interface live in one zone.
  worker_subnets = slice(aws_subnet.private[*].id, 0, var.placement_group || var.efa ? 1 : var.zones)

  worker_node_config = merge(
    {
      LaunchTemplate = {
        LaunchTemplateId = aws_launch_template.worker.id
        Version          = tostring(aws_launch_template.worker.latest_version)
      }
      SubnetIds         = local.worker_subnets
      TagSpecifications = [{ ResourceType = "volume", Tags = [{ Key = "Project", Value = var.name }] }]
    },
    { for key in ["InstanceMarketOptions"] : key => { MarketType = "spot" } if var.spot },
    { for key in ["NetworkInterfaces"] : key => [{
      DeviceIndex         = 0
      InterfaceType       = "efa"
      SubnetId            = local.worker_subnets[0]
      Groups              = [aws_security_group.nodes.id]
      DeleteOnTermination = true
    }] if var.efa },
  )

  autoscaler = {
    cluster_name         = var.name
    max_workers          = var.max_workers
    upscaling_speed      = 1
    idle_timeout_minutes = var.idle_timeout_minutes

    provider = {
      type                        = "external"
      module                      = "nodes.provider.SpotThenOnDemand"
      region                      = var.region
      cache_stopped_nodes         = false # a stopped node's disk goes on costing
      disable_node_updaters       = true  # nodes set themselves up, nobody logs in
      disable_launch_config_check = true
    }

    head_node_type = "head"
    available_node_types = merge(
      { head = { min_workers = 0, max_workers = 0, resources = { CPU = 0 }, node_config = {} } },
      { for index, type in var.gpu_instance_types : type => {
        min_workers = 0
        max_workers = var.max_workers
        priority    = length(var.gpu_instance_types) - index
        node_config = merge(local.worker_node_config, { InstanceType = type })
        resources = {
          CPU    = data.aws_ec2_instance_type.worker[type].default_vcpus
          GPU    = try(sum(data.aws_ec2_instance_type.worker[type].gpus[*].count), 0)
          memory = floor(data.aws_ec2_instance_type.worker[type].memory_size * 1024 * 1024 * 0.7) # the rest: objects and system
        }
      } },
    )

    auth                          = {}
    docker                        = {}
    file_mounts                   = {}
    file_mounts_sync_continuously = false
    cluster_synced_files          = []
    rsync_exclude                 = []
    rsync_filter                  = []
    initialization_commands       = []
    setup_commands                = []
    head_setup_commands           = []
    worker_setup_commands         = []
    head_start_ray_commands       = []
    worker_start_ray_commands     = []
  }
}

resource "aws_s3_object" "autoscaler" {
  bucket     = module.storage.bucket
  key        = local.autoscaler_key
  content    = yamlencode(local.autoscaler)
  kms_key_id = module.storage.key_arn
}
