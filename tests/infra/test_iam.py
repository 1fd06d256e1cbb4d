"""What each role may and may not do, as a table, by an evaluator of IAM policies (conditions included, as moto's isn't)."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.infra.conftest import Cluster

pytestmark = [pytest.mark.infra, pytest.mark.timeout(900)]

HERE = Path(__file__).parent / "iam"
BUCKET = "arn:aws:s3:::pixelcnn-123456789012-us-east-1"
EC2 = "arn:aws:ec2:us-east-1:123456789012"
NONE: dict[str, str] = {}
FOREIGN_TEMPLATE = f"{EC2}:launch-template/lt-00000000000000000"
WORKER_TAGS = {"aws:RequestTag/ray-cluster-name": "pixelcnn", "aws:RequestTag/ray-node-type": "worker"}
OWN_WORKER = {"aws:ResourceTag/ray-cluster-name": "pixelcnn", "aws:ResourceTag/ray-node-type": "worker"}
OWN_HEAD = {"aws:ResourceTag/ray-cluster-name": "pixelcnn", "aws:ResourceTag/ray-node-type": "head"}
FOREIGN_WORKER = {"aws:ResourceTag/ray-cluster-name": "other", "aws:ResourceTag/ray-node-type": "worker"}
BY_S3, BY_EC2 = ({"kms:ViaService": f"{service}.us-east-1.amazonaws.com"} for service in ("s3", "ec2"))
IN_DATA, IN_RUNS, IN_ARTIFACTS, IN_SOFTWARE = (
    {"s3:prefix": f"{name}/x"} for name in ("data", "runs", "artifacts", "software")
)
OWN_METRICS, FOREIGN_METRICS = {"cloudwatch:namespace": "pixelcnn-ray"}, {"cloudwatch:namespace": "AWS/EC2"}


# What is asked (names in braces are the cluster's own resources), in which context, and who may do it.
TABLE: list[tuple[str, str, dict[str, Any], str]] = [
    ("s3:GetObject", f"{BUCKET}/data/train/shard-000000.tar", NONE, "head worker"),
    ("s3:PutObject", f"{BUCKET}/data/train/shard-000000.tar", NONE, "head"),
    ("s3:DeleteObject", f"{BUCKET}/data/train/shard-000000.tar", NONE, "head"),
    ("s3:GetObject", f"{BUCKET}/runs/one/checkpoint.json", NONE, "head worker"),
    ("s3:PutObject", f"{BUCKET}/runs/one/checkpoint.json", NONE, "head worker"),
    ("s3:DeleteObject", f"{BUCKET}/runs/one/checkpoint.json", NONE, "head worker"),
    ("s3:DeleteObjectVersion", f"{BUCKET}/runs/one/checkpoint.json", NONE, ""),
    ("s3:GetObject", f"{BUCKET}/artifacts/1/grid.png", NONE, "mlflow"),
    ("s3:PutObject", f"{BUCKET}/artifacts/1/grid.png", NONE, "mlflow"),
    ("s3:GetObject", f"{BUCKET}/software/a/b.whl", NONE, "head worker mlflow"),
    ("s3:PutObject", f"{BUCKET}/software/a/b.whl", NONE, ""),
    ("s3:GetObject", f"{BUCKET}/config/autoscaler.yaml", NONE, "head"),
    ("s3:PutObject", f"{BUCKET}/config/autoscaler.yaml", NONE, ""),
    ("s3:GetObject", "arn:aws:s3:::someone-elses/data/x", NONE, ""),
    ("s3:ListBucket", BUCKET, IN_DATA, "head worker"),
    ("s3:ListBucket", BUCKET, IN_RUNS, "head worker"),
    ("s3:ListBucket", BUCKET, IN_ARTIFACTS, "mlflow"),
    ("s3:ListBucket", BUCKET, IN_SOFTWARE, ""),
    ("s3:ListBucket", BUCKET, NONE, ""),
    ("s3:PutBucketPolicy", BUCKET, NONE, ""),
    ("s3:DeleteBucket", BUCKET, NONE, ""),
    ("secretsmanager:GetSecretValue", "{ray-token}", NONE, "head worker"),
    ("secretsmanager:GetSecretValue", "{mlflow}", NONE, "head worker mlflow"),
    ("secretsmanager:GetSecretValue", "{grafana}", NONE, "head"),
    ("secretsmanager:GetSecretValue", "{database}", NONE, "mlflow"),
    ("secretsmanager:PutSecretValue", "{ray-token}", NONE, ""),
    ("ec2:RunInstances", f"{EC2}:instance/*", {"template": "own", "type": "g6.xlarge", "tokens": "required"} | WORKER_TAGS, "head"),
    ("ec2:RunInstances", f"{EC2}:instance/*", {"template": "own", "type": "p5.48xlarge", "tokens": "required"} | WORKER_TAGS, ""),
    ("ec2:RunInstances", f"{EC2}:instance/*", {"template": "own", "type": "g6.xlarge", "tokens": "optional"} | WORKER_TAGS, ""),
    ("ec2:RunInstances", f"{EC2}:instance/*", {"template": "own", "type": "g6.xlarge", "tokens": "required"}, ""),
    ("ec2:RunInstances", f"{EC2}:instance/*", {"template": "foreign", "type": "g6.xlarge", "tokens": "required"} | WORKER_TAGS, ""),
    ("ec2:RunInstances", f"{EC2}:instance/*", {"type": "g6.xlarge", "tokens": "required"} | WORKER_TAGS, ""),
    ("ec2:RunInstances", "{subnet}", {"template": "own"}, "head"),
    ("ec2:RunInstances", "{subnet}", {"template": "foreign"}, ""),
    ("ec2:RunInstances", f"{EC2}:subnet/subnet-00000000000000000", {"template": "own"}, ""),
    ("ec2:RunInstances", "{group}", {"template": "own"}, "head"),
    ("ec2:RunInstances", f"{EC2}:security-group/sg-00000000000000000", {"template": "own"}, ""),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", OWN_WORKER, "head"),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", OWN_HEAD, ""),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", FOREIGN_WORKER, ""),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", NONE, ""),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", {"ec2:CreateAction": "RunInstances"}, "head"),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", NONE, ""),
    ("ec2:ModifyInstanceAttribute", f"{EC2}:instance/i-1", OWN_WORKER, ""),
    ("ec2:AuthorizeSecurityGroupIngress", "{group}", NONE, ""),
    ("ec2:DescribeInstances", "*", NONE, "head"),
    ("iam:PassRole", "{worker-role}", {"iam:PassedToService": "ec2.amazonaws.com"}, "head"),
    ("iam:PassRole", "{worker-role}", {"iam:PassedToService": "lambda.amazonaws.com"}, ""),
    ("iam:PassRole", "{head-role}", {"iam:PassedToService": "ec2.amazonaws.com"}, ""),
    ("iam:AttachRolePolicy", "{worker-role}", NONE, ""),
    ("iam:CreateUser", "arn:aws:iam::123456789012:user/one", NONE, ""),
    ("kms:Decrypt", "{key}", BY_S3, "head worker mlflow"),
    ("kms:Decrypt", "{key}", BY_EC2, "head"),
    ("kms:Decrypt", "{key}", NONE, ""),
    ("kms:CreateGrant", "{key}", BY_EC2 | {"kms:GrantIsForAWSResource": "true"}, "head"),
    ("kms:CreateGrant", "{key}", BY_EC2 | {"kms:GrantIsForAWSResource": "false"}, ""),
    ("kms:ScheduleKeyDeletion", "{key}", NONE, ""),
    ("cloudwatch:PutMetricData", "*", OWN_METRICS, "head worker mlflow"),
    ("cloudwatch:PutMetricData", "*", FOREIGN_METRICS, ""),
    ("ssmmessages:OpenDataChannel", "*", NONE, "head worker mlflow"),
    ("ssm:GetParameter", "arn:aws:ssm:us-east-1:123456789012:parameter/any", NONE, ""),
    ("ssm:StartSession", f"{EC2}:instance/i-1", NONE, ""),
]  # fmt: skip
ROLES = ("head", "worker", "mlflow")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside its library, which npm installs."""
    if not shutil.which("npm"):
        pytest.skip("the policy evaluator needs node and npm")
    folder = tmp_path_factory.mktemp("iam")
    for name in ("package.json", "package-lock.json", "evaluate.mjs"):
        shutil.copy(HERE / name, folder)
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"@cloud-copilot/iam-simulate is not to be had: {installed.stderr[-300:]}")
    return folder / "evaluate.mjs"


def in_aws_words(context: dict[str, str], template: str) -> dict[str, str]:
    """The table's short words as condition keys."""
    names = {"type": "ec2:InstanceType", "tokens": "ec2:MetadataHttpTokens"}
    templates = {"own": template, "foreign": FOREIGN_TEMPLATE}
    found = {names.get(key, key): value for key, value in context.items() if key != "template"}
    return found | ({"ec2:LaunchTemplate": templates[context["template"]]} if "template" in context else {})


def test_each_role_may_what_its_work_needs_and_nothing_else(cluster: Cluster, evaluator: Path) -> None:
    found = cluster.resources()
    own = {
        "{subnet}": found["aws_subnet.private[1]"]["arn"], "{group}": found["aws_security_group.nodes"]["arn"],
        "{key}": found["module.storage.aws_kms_key.this"]["arn"],
        "{database}": found["aws_db_instance.mlflow[0]"]["master_user_secret"][0]["secret_arn"],
        "{worker-role}": found['aws_iam_role.node["worker"]']["arn"], "{head-role}": found['aws_iam_role.node["head"]']["arn"],
    } | {
        f"{{{name}}}": found[f'module.secrets.aws_secretsmanager_secret.made["{name}"]']["arn"]
        for name in ("ray-token", "mlflow", "grafana")
    }  # fmt: skip
    policies = {role: json.loads(found[f'aws_iam_role_policy.node["{role}"]']["policy"]) for role in ROLES}
    template = found["aws_launch_template.worker"]["arn"]
    requests = [
        {"policy": policies[role], "action": action, "resource": own.get(resource, resource), "context": in_aws_words(context, template)}
        for action, resource, context, _ in TABLE
        for role in ROLES
    ]  # fmt: skip
    told = subprocess.run(["node", evaluator], input=json.dumps(requests), capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    results = json.loads(told.stdout)
    assert set(results) == {"Allowed", "ImplicitlyDenied"}, [
        (requests[index]["action"], result) for index, result in enumerate(results) if result.startswith("error")
    ]
    wrong = []
    for row, (action, resource, context, expected) in enumerate(TABLE):
        allowed = [role for place, role in enumerate(ROLES) if results[3 * row + place] == "Allowed"]
        if allowed != [role for role in ROLES if role in expected.split()]:
            wrong.append(f"{action} {resource} {context}: allowed to {allowed}, the table says [{expected}]")
    assert wrong == []
