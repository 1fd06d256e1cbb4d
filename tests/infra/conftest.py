"""A cluster that Terraform made in moto, shared by the tests of infra/."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.conftest import BIN, free_port, listening, wait_until

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SOFTWARE = "0" * 64
PROVIDER = "registry.terraform.io/hashicorp/aws"
USUAL_PLACES = ("/opt", "/usr/local", "/usr/share", "/usr/lib", "~/.terraform.d")

MOTO_OVERRIDE = """
provider "aws" {
  s3_use_path_style = true
}

provider "aws" {
  alias = "secrets"
}
"""
POLICY_OVERRIDE = """
# moto takes every condition of a bucket's policy for fulfilled, so the real one would deny everything.
resource "aws_s3_bucket_policy" "this" {
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect = "Allow", Principal = { AWS = var.account_id }, Action = "s3:*", Resource = aws_s3_bucket.this.arn
    }]
  })
}
"""


def provider_folder() -> str | None:
    """TF_PLUGIN_DIR, or a mirror of Terraform's providers in one of the usual places; None: Terraform's own ways."""
    if found := os.environ.get("TF_PLUGIN_DIR"):
        return found
    for place in USUAL_PLACES:
        for depth in ("", "*/", "*/*/"):
            for folder in Path(place).expanduser().glob(f"{depth}{PROVIDER}"):
                return str(folder.parents[2])
    return None


def terraform(folder: Path, *words: str, environment: dict[str, str] | None = None) -> str:
    """Terraform's output; a failure fails the test with what it said."""
    run = subprocess.run(
        ["terraform", f"-chdir={folder}", *words], env=environment or terraform_environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"terraform {' '.join(words)}:\n{run.stdout[-6000:]}\n{run.stderr[-6000:]}"
    return run.stdout


def terraform_environment() -> dict[str, str]:
    """This process's, without a configuration file that isn't there."""
    environment = dict(os.environ)
    if not Path(environment.get("TF_CLI_CONFIG_FILE", "/dev/null")).exists():
        del environment["TF_CLI_CONFIG_FILE"]
    return environment


def configuration(folder: Path, source: Path = INFRA) -> Path:
    """A copy of a Terraform configuration with its provider; skips where there is none to be had."""
    if not shutil.which("terraform"):
        pytest.skip("terraform is not on PATH")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*", "*.auto.tfvars.json"))
    plugins = provider_folder()
    words = ["init", "-backend=false", "-input=false", *([f"-plugin-dir={plugins}"] if plugins else [])]
    run = subprocess.run(
        ["terraform", f"-chdir={folder}", *words],
        env=terraform_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        pytest.skip(f"hashicorp/aws is not to be had (set TF_PLUGIN_DIR): {run.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """infra/ with its provider."""
    return configuration(tmp_path_factory.mktemp("terraform") / "infra")


@dataclass(frozen=True)
class Moto:
    """moto's server: AWS on a port of this machine."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every client of AWS finds it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """A client of one of its services."""
        return boto3.client(
            service, endpoint_url=f"http://127.0.0.1:{self.port}", region_name=region, aws_access_key_id="key",
            aws_secret_access_key="secret",
        )  # fmt: skip


@contextlib.contextmanager
def serving_moto(folder: Path) -> Iterator[Moto]:
    """A server of an AWS account of its own; its log in the folder."""
    port = free_port()
    program = BIN / "moto_server"
    with (folder / "log").open("w") as log:
        environment = os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
        command = [program, "-H", "0.0.0.0", "-p", str(port)]
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as server:
            try:
                wait_until(lambda: listening(port), 60, "moto's server")
                yield Moto(port)
            finally:
                server.terminate()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """A server for the session."""
    with serving_moto(tmp_path_factory.mktemp("moto")) as served:
        yield served


@dataclass(frozen=True)
class Cluster:
    """What `terraform apply` left in moto."""

    folder: Path
    moto: Moto
    software: Path
    s3_port: int

    @property
    def environment(self) -> dict[str, str]:
        """Terraform's and the scripts' environment."""
        return terraform_environment() | self.moto.environment

    def terraform(self, *words: str) -> str:
        """Terraform in the cluster's folder."""
        return terraform(self.folder, *words, environment=self.environment)

    def resources(self) -> dict[str, dict[str, Any]]:
        """Attributes by address, from the state."""
        state = json.loads((self.folder / "terraform.tfstate").read_text())
        return {
            ".".join(part for part in (found.get("module"), found["type"], found["name"]) if part)
            + (f"[{json.dumps(instance['index_key'])}]" if "index_key" in instance else ""): instance["attributes"]
            for found in state["resources"]
            if found["mode"] == "managed"
            for instance in found["instances"]
        }

    def outputs(self) -> dict[str, Any]:
        """Terraform's outputs."""
        return {key: entry["value"] for key, entry in json.loads(self.terraform("output", "-json")).items()}


BRIDGE = "10.64.254.1"
"""This machine's address among the cluster's, where tests give it one."""


@pytest.fixture(scope="session")
def cluster(moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """infra/ applied in moto, once for the session."""
    return applied(moto, tmp_path_factory.mktemp("applied"))


def applied(moto: Moto, parent: Path, more: str = "") -> Cluster:
    """infra/ applied in moto, with software as `infra/software build` makes it for images with the environment.

    more: Terraform's words for what the test adds to it.
    """
    folder = configuration(parent / "infra")
    (folder / "more.tf").write_text(more)
    (folder / "moto_override.tf").write_text(MOTO_OVERRIDE)
    (folder / "storage" / "moto_override.tf").write_text(POLICY_OVERRIDE)
    software, s3_port = parent / "software", free_port()
    build = [
        sys.executable, INFRA / "software", "build", "--no-dependencies", "--folder", software,
        "--variables", folder / "software.auto.tfvars.json",
    ]  # fmt: skip
    subprocess.run(build, check=True)
    image = moto.client("ec2").describe_images()["Images"][0]["ImageId"]
    variables = {
        "images": {"head": image, "worker": image},
        "node_environment": {
            "AWS_ENDPOINT_URL": f"http://{BRIDGE}:{moto.port}", "AWS_ENDPOINT_URL_S3": f"http://{BRIDGE}:{s3_port}",
        },
    }  # fmt: skip
    (folder / "test.auto.tfvars.json").write_text(json.dumps(variables))
    made = Cluster(folder, moto, software, s3_port)
    made.terraform("apply", "-auto-approve", "-input=false")
    return made
