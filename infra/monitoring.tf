# Alarms. The metrics that EC2 doesn't have are sent by nodes/metrics.py, once a minute.

locals {
  metrics_namespace = "pixelcnn-ray"

  alarms = {
    head-machine = {
      description = "The head's machine fails EC2's checks, or has stopped"
      namespace   = "AWS/EC2", metric = "StatusCheckFailed", dimensions = { InstanceId = aws_instance.head.id }
      comparison  = "GreaterThanOrEqualToThreshold", threshold = 1, period = 60, times = 3, missing = "breaching"
    }
    head-ray = {
      description = "Ray doesn't answer on the head: workers end themselves, no job can be submitted"
      namespace   = local.metrics_namespace, metric = "RayAlive", dimensions = { Cluster = var.name, Role = "head" }
      comparison  = "LessThanThreshold", threshold = 1, period = 60, times = 3, missing = "breaching"
    }
    head-disk = {
      description = "The head's disk is nearly full"
      namespace   = local.metrics_namespace, metric = "DiskUsedPercent", dimensions = { Cluster = var.name, Role = "head" }
      comparison  = "GreaterThanThreshold", threshold = 85, period = 300, times = 1, missing = "missing"
    }
    worker-disk = {
      description = "A worker's disk is nearly full"
      namespace   = local.metrics_namespace, metric = "DiskUsedPercent", dimensions = { Cluster = var.name, Role = "worker" }
      comparison  = "GreaterThanThreshold", threshold = 85, period = 300, times = 1, missing = "notBreaching"
    }
    mlflow-machine = {
      description = "The MLflow server's machine fails EC2's checks, or has stopped"
      namespace   = "AWS/EC2", metric = "StatusCheckFailed", dimensions = { InstanceId = aws_instance.mlflow.id }
      comparison  = "GreaterThanOrEqualToThreshold", threshold = 1, period = 60, times = 3, missing = "breaching"
    }
    gpu-idle = {
      description = "There are GPUs, and for an hour none was used more than 5%"
      namespace   = local.metrics_namespace, metric = "GpuUsedPercent", dimensions = { Cluster = var.name, Role = "worker" }
      comparison  = "LessThanThreshold", threshold = 5, period = 300, times = 12, missing = "notBreaching"
    }
  }
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = module.storage.key_arn
}

resource "aws_sns_topic_subscription" "email" {
  count = var.alarm_email == "" ? 0 : 1

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.alarm_email
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.comparison == "LessThanThreshold" && each.key != "gpu-idle" ? "Minimum" : "Maximum"
  comparison_operator = each.value.comparison
  threshold           = each.value.threshold
  period              = each.value.period
  evaluation_periods  = each.value.times
  treat_missing_data  = each.value.missing
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}
