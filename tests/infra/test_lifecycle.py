"""The whole of infra/ in moto: applied, planned again, its secrets looked for, destroyed to nothing."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.infra.conftest import INFRA, ROOT, Cluster
from tests.infra.stand_ins import start_worker

pytestmark = [pytest.mark.infra, pytest.mark.timeout(900)]

FALSE_DRIFT = {
    "aws_db_parameter_group.mlflow[0]": {"parameter"},
    "aws_instance.head": {"vpc_security_group_ids"},
    "aws_instance.mlflow": {"vpc_security_group_ids"},
    "aws_launch_template.worker": {"default_version", "latest_version", "tag_specifications"},
    "aws_s3_object.autoscaler": {"content", "version_id"},
}
"""What moto forgets: parameters of a DB parameter group, groups of an instance with a given address. And what it takes
for a template's tag_specifications, the template's own tags; so the autoscaler's file would name its next version."""
RULES = ("aws_vpc_security_group_ingress_rule.", "aws_vpc_security_group_egress_rule.")
"""Of these it forgets the description."""


def differing(change: dict[str, Any]) -> set[str]:
    """Attributes that a plan would change."""
    before, after = change["before"] or {}, change["after"] or {}
    return {key for key in before | after if before.get(key) != after.get(key)}


def test_a_second_plan_changes_nothing_but_what_moto_forgets(cluster: Cluster) -> None:
    cluster.terraform("plan", "-input=false", "-out=again")
    plan = json.loads(cluster.terraform("show", "-json", "again"))
    drift = {
        found["address"]: (found["change"]["actions"], differing(found["change"]))
        for found in plan["resource_changes"]
        if found["change"]["actions"] not in (["no-op"], ["read"])
    }
    rules = {address: {"description"} for address in cluster.resources() if address.startswith(RULES)}
    assert len(rules) == 12
    assert drift == {address: (["update"], keys) for address, keys in (FALSE_DRIFT | rules).items()}


def secrets(cluster: Cluster) -> dict[str, str]:
    client = cluster.moto.client("secretsmanager")
    return {
        name: client.get_secret_value(SecretId=full)["SecretString"]
        for name, full in cluster.outputs()["secrets"].items()
    }


def test_secrets_are_random_and_nowhere_but_in_secrets_manager(cluster: Cluster) -> None:
    values = secrets(cluster)
    assert {name: len(value) for name, value in values.items()} == {"ray-token": 64, "mlflow": 40, "grafana": 40}
    assert len(set(values.values())) == 3
    written = {
        path.name: path.read_bytes()
        for path in cluster.folder.rglob("*")
        if path.is_file() and ".terraform" not in path.parts
    }
    assert "terraform.tfstate" in written
    assert [name for name, content in written.items() for value in values.values() if value.encode() in content] == []


def test_rds_keeps_its_own_password(cluster: Cluster) -> None:
    database = cluster.resources()["aws_db_instance.mlflow[0]"]
    assert database["manage_master_user_password"] is True
    assert not database["password"]


def test_head_and_workers_agree_on_the_heads_address(cluster: Cluster) -> None:
    found = cluster.resources()
    address = found["aws_instance.head"]["private_ip"]
    described = cluster.moto.client("ec2").describe_instances(InstanceIds=[found["aws_instance.head"]["id"]])
    assert described["Reservations"][0]["Instances"][0]["PrivateIpAddress"] == address
    user_data = base64.b64decode(found["aws_launch_template.worker"]["user_data"]).decode()
    assert f"PIXELCNN_HEAD_ADDRESS={address}\n" in user_data


def test_what_the_docs_say_of_idling_is_what_terraform_reckons(cluster: Cluster) -> None:
    outputs = cluster.outputs()
    rows = re.findall(r"^\| (.+?) \| ([\d.]+|\*\*[\d.]+\*\*) \|", (ROOT / "docs" / "cost.md").read_text(), re.MULTILINE)
    told = {name.strip("*"): float(value.strip("*")) for name, value in rows[:8]}
    total = told.pop("USD an hour")
    assert sorted(told.values()) == pytest.approx(sorted(outputs["idle_usd_per_hour"].values()), abs=5e-5)
    assert total == pytest.approx(outputs["idle_usd_per_hour_total"], abs=5e-4)
    assert f"as of {outputs['prices_as_of'].split()[0]}" in (ROOT / "docs" / "cost.md").read_text()


def destroy(cluster: Cluster, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, INFRA / "destroy", "--chdir", cluster.folder, "--yes", *words]
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
    bucket = cluster.outputs()["bucket"]
    s3 = cluster.moto.client("s3")
    s3.put_object(Bucket=bucket, Key="runs/one/checkpoint.json", Body=b"kept")

    report_jobs(cluster, 2)
    refused = destroy(cluster)
    assert refused.returncode == 1
    assert "2 jobs wait or run on pixelcnn; wait, stop them, or give --while-jobs-run" in refused.stderr
    assert worker in left(cluster)["instances"]

    kept = destroy(cluster, "--while-jobs-run")
    assert kept.returncode == 0, kept.stdout[-3000:] + kept.stderr[-3000:]
    assert "1 autoscaled workers ended" in kept.stdout
    assert left(cluster) == {"instances": [stranger], "databases": [], "endpoints": [], "secrets": [], "alarms": []}
    assert s3.get_object(Bucket=bucket, Key="runs/one/checkpoint.json")["Body"].read() == b"kept"
    snapshots = cluster.moto.client("rds").describe_db_snapshots()["DBSnapshots"]
    assert [bool(re.match(r"pixelcnn-mlflow-\d{4}-", one["DBSnapshotIdentifier"])) for one in snapshots] == [True]
    assert cluster.resources() == {}

    assert Path(cluster.folder, "kept.auto.tfvars.json").exists()
    taken = cluster.terraform("apply", "-auto-approve", "-input=false", "-no-color", "-target=module.storage")
    assert re.search(r"3 imported, \d+ added, \d+ changed, 0 destroyed", taken), taken[-500:]
    cluster.terraform("apply", "-auto-approve", "-input=false", "-no-color", "-var=mlflow_database_class=")
    report_jobs(cluster, 0)
    gone = destroy(cluster, "--delete-data")
    assert gone.returncode == 0, gone.stdout[-3000:] + gone.stderr[-3000:]
    assert cluster.resources() == {}
    assert left(cluster)["instances"] == [stranger]
    assert [one["Name"] for one in s3.list_buckets()["Buckets"]] == []
