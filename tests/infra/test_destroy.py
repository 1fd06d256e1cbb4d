"""infra/ in moto destroyed: refused, kept, taken over again, to nothing."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA, Cluster, applied, serving_moto
from tests.infra.stand_ins import start_worker

pytestmark = [pytest.mark.infra, pytest.mark.timeout(900)]

OBSTACLE = """
resource "terraform_data" "obstacle" {
  input = aws_vpc.this.id
  provisioner "local-exec" {
    when    = destroy
    command = "test -e lifted"
  }
}
"""
"""What hangs on the network and can't be destroyed before there is a file `lifted`; so the network can't either."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One of this test's own, with the obstacle, in an account of its own, as nothing of either is left."""
    with serving_moto(tmp_path) as moto:
        yield applied(moto, tmp_path, OBSTACLE)


COMMAND = [sys.executable, INFRA / "destroy", "--chdir"]


def destroy(cluster: Cluster, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, cluster.folder, "--yes", *words]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)


def left(cluster: Cluster) -> dict[str, list[str]]:
    """What costs money and is still there, by the services' own word."""
    ec2 = cluster.moto.client("ec2")
    instances = [
        one["InstanceId"] for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]
        if one["State"]["Name"] != "terminated"
    ]  # fmt: skip
    databases = cluster.moto.client("rds").describe_db_instances()["DBInstances"]
    endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    secrets = cluster.moto.client("secretsmanager").list_secrets()["SecretList"]
    alarms = cluster.moto.client("cloudwatch").describe_alarms()["MetricAlarms"]
    return {
        "instances": instances,
        "databases": [one["DBInstanceIdentifier"] for one in databases],
        "endpoints": [one["VpcEndpointId"] for one in endpoints if one["State"] != "deleted"],
        "secrets": [one["Name"] for one in secrets if "DeletedDate" not in one],
        "alarms": [one["AlarmName"] for one in alarms],
    }


def report_jobs(cluster: Cluster, count: int) -> None:
    """What the head would send."""
    dimensions = [{"Name": "Cluster", "Value": "pixelcnn"}, {"Name": "Role", "Value": "head"}]
    cluster.moto.client("cloudwatch").put_metric_data(
        Namespace="pixelcnn-ray", MetricData=[{"MetricName": "JobsAtWork", "Dimensions": dimensions, "Value": count}]
    )


def test_destroy_refuses_keeps_is_taken_over_and_leaves_nothing(cluster: Cluster) -> None:
    worker, stranger = start_worker(cluster), cluster.moto.client("ec2").run_instances(
        MinCount=1, MaxCount=1, ImageId=cluster.resources()["aws_instance.head"]["ami"]
    )["Instances"][0]["InstanceId"]  # fmt: skip
    outputs = cluster.outputs()
    bucket, storage = outputs["bucket"], outputs["storage"]
    s3 = cluster.moto.client("s3")
    s3.put_object(Bucket=bucket, Key="runs/one/checkpoint.json", Body=b"kept")

    report_jobs(cluster, 2)
    refused = destroy(cluster)
    assert refused.returncode == 1
    assert "2 jobs wait or run on pixelcnn; wait, stop them, or give --while-jobs-run" in refused.stderr
    assert worker in left(cluster)["instances"]

    command = [*COMMAND, cluster.folder, "--while-jobs-run"]
    unsure = subprocess.run(
        command, env=cluster.environment, input="pixel\n", capture_output=True, text=True, check=False
    )
    assert (unsure.returncode, unsure.stderr) == (1, "nothing was destroyed; type the cluster's name, or give --yes\n")
    assert worker in left(cluster)["instances"]

    failed = destroy(cluster, "--while-jobs-run")
    assert failed.returncode == 1
    assert "1 autoscaled workers ended" in failed.stdout
    assert "terraform destroy failed; what it said stands above. Run this again" in failed.stderr
    assert cluster.outputs() == {}
    assert "aws_vpc.this" in cluster.resources()
    (cluster.folder / "lifted").touch()

    kept = destroy(cluster, "--while-jobs-run")
    assert kept.returncode == 0, kept.stdout[-3000:] + kept.stderr[-3000:]
    assert left(cluster) == {"instances": [stranger], "databases": [], "endpoints": [], "secrets": [], "alarms": []}
    assert s3.get_object(Bucket=bucket, Key="runs/one/checkpoint.json")["Body"].read() == b"kept"
    snapshots = cluster.moto.client("rds").describe_db_snapshots()["DBSnapshots"]
    assert [bool(re.match(r"pixelcnn-mlflow-\d{4}-", one["DBSnapshotIdentifier"])) for one in snapshots] == [True]
    assert cluster.resources() == {}

    assert json.loads(Path(cluster.folder, "kept.auto.tfvars.json").read_text()) == {"kept_storage": storage}
    assert storage["region"] == "us-east-1"
    taken = cluster.terraform("apply", "-auto-approve", "-input=false", "-no-color", "-var=mlflow_database_class=")
    assert re.search(r"3 imported, \d+ added, \d+ changed, 0 destroyed", taken), taken[-500:]
    report_jobs(cluster, 0)
    gone = destroy(cluster, "--delete-data")
    assert gone.returncode == 0, gone.stdout[-3000:] + gone.stderr[-3000:]
    assert cluster.resources() == {}
    assert left(cluster)["instances"] == [stranger]
    assert [one["Name"] for one in s3.list_buckets()["Buckets"]] == []
