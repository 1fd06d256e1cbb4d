terraform {
  required_version = ">= 1.11" # write-only arguments, by which no secret reaches the state

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { Project = var.name }
  }
}

# The same for the secrets, apart because Terraform's tests can't mock their ephemeral resources.
provider "aws" {
  alias  = "secrets"
  region = var.region

  default_tags {
    tags = { Project = var.name }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

data "aws_availability_zones" "here" {
  #checkov:skip=CKV_AWS_394:the first var.zones of the list are taken, so one more at its end changes nothing
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}
