"""The whole of infra/ in moto: applied, planned again, its secrets looked for."""

import base64
import json
import re
from typing import Any

import pytest

from tests.infra.conftest import ROOT, Cluster

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
