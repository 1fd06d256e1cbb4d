"""What `infra/connect`, `destroy` and `software` say where something lacks; the real Terraform, AWS never asked."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.infra.conftest import INFRA, Moto, serving_moto, terraform_environment

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
NAMED = {"region": "us-east-1", "name": "pixelcnn"}
WHOLE = NAMED | {
    "bucket": "pixelcnn-1", "head_instance_id": "i-1", "mlflow_instance_id": "i-2", "secrets": {}, "storage": {},
    "software_sha256": "0" * 64,
}  # fmt: skip


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of PATH with Terraform and what is there of the AWS CLI and its plugin, which are never started."""
    if not (terraform := shutil.which("terraform")):
        pytest.skip("terraform is not on PATH")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "terraform").symlink_to(terraform)
    for name in ("aws", "session-manager-plugin"):
        (folder / name).touch(0o755)
    return folder


def with_state(folder: Path, outputs: dict[str, object]) -> Path:
    """A configuration's folder whose state has these outputs, and a resource where there are any."""
    folder.mkdir()
    types = {str: "string", dict: ["object", {}]}
    told = {name: {"value": value, "type": types[type(value)]} for name, value in outputs.items()}
    resource = {
        "mode": "managed", "type": "terraform_data", "name": "this", "instances": [{"attributes": {"id": "1"}}],
        "provider": 'provider["terraform.io/builtin/terraform"]',
    }  # fmt: skip
    state = {
        "version": 4, "terraform_version": "1.11.0", "serial": 1, "lineage": "1", "outputs": told,
        "resources": [resource] if outputs else [],
    }  # fmt: skip
    (folder / "terraform.tfstate").write_text(json.dumps(state))
    return folder


def said(programs: Path, *words: object) -> str:
    """The last line of a script that is to end with status 1, asked by nobody and without credentials."""
    environment = terraform_environment() | {
        "PATH": str(programs), "HOME": str(programs), "AWS_EC2_METADATA_DISABLED": "true"
    }  # fmt: skip
    environment = {name: value for name, value in environment.items() if name not in ("AWS_PROFILE", *SECRETS)}
    command = [sys.executable, INFRA / str(words[0]), *map(str, words[1:])]
    run = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    return run.stderr.splitlines()[-1]


@pytest.mark.parametrize("script", ["connect", "destroy"])
def test_no_cluster_is_told(script: str, programs: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "empty", with_state(tmp_path / "destroyed", {})):
        folder.mkdir(exist_ok=True)
        told = said(programs, script, "--chdir", folder)
        assert told.startswith(f"{folder}: no cluster in Terraform's state; ")


@pytest.mark.parametrize("script", ["connect", "destroy"])
def test_a_missing_program_is_told(script: str, programs: Path, tmp_path: Path) -> None:
    (programs / "terraform").unlink()
    assert said(programs, script, "--chdir", tmp_path).startswith("terraform is not on PATH; install Terraform")


def test_what_an_apply_left_half_made_is_told_before_it_is_connected_to(programs: Path, tmp_path: Path) -> None:
    folder = with_state(tmp_path / "half", NAMED | {"bucket": "pixelcnn-1"})
    assert said(programs, "connect", "--chdir", folder) == (
        f"{folder}: its cluster is not whole, head_instance_id is missing; run `terraform -chdir=infra apply` to its "
        "end first"
    )


@pytest.mark.parametrize("script", ["connect", "destroy"])
def test_lacking_credentials_are_one_line(script: str, programs: Path, tmp_path: Path) -> None:
    words = [word for name in ("ray", "mlflow") for word in (f"--{name}-port", free_port())]
    chdir = ["--chdir", with_state(tmp_path / "whole", WHOLE)]
    told = said(programs, script, *chdir, *(words if script == "connect" else []))
    assert told.startswith("AWS: Unable to locate credentials; set it right (AWS_PROFILE, ")


def test_a_cluster_that_was_made_in_part_is_told_before_it_is_destroyed(programs: Path, tmp_path: Path) -> None:
    folder = with_state(tmp_path / "part", {"bucket": "pixelcnn-1"})
    assert said(programs, "destroy", "--chdir", folder).startswith(
        f"{folder}: its cluster is not whole, name is missing"
    )


def keep(folder: Path, moto: Moto) -> tuple[str, str]:
    """Bucket and key as an earlier destroy keeps them, in another region than the environment's."""
    region = "eu-west-1"
    key = moto.client("kms", region).create_key()["KeyMetadata"]["KeyId"]
    moto.client("kms", region).create_alias(AliasName="alias/pixelcnn", TargetKeyId=key)
    s3, bucket = moto.client("s3", region), "pixelcnn-1"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):
        s3.put_object(Bucket=bucket, Key="runs/one/checkpoint.json", Body=b"kept")
    s3.delete_object(Bucket=bucket, Key="runs/one/checkpoint.json")
    kept = {"bucket": bucket, "key_id": key, "alias": "alias/pixelcnn", "region": region}
    with_state(folder, {})
    (folder / "kept.auto.tfvars.json").write_text(json.dumps({"kept_storage": kept}))
    return bucket, key


def test_what_an_earlier_destroy_kept_is_deleted_when_a_person_is_sure(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "destroyed"
    with serving_moto(tmp_path) as moto:
        bucket, key = keep(folder, moto)

        def answering(answer: str, *words: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, INFRA / "destroy", "--chdir", folder, *words], input=answer, capture_output=True,
                text=True, check=False, env=terraform_environment() | moto.environment | {"PATH": str(programs)},
            )  # fmt: skip

        assert "there is nothing to destroy" in answering(f"{bucket}\n").stderr
        unsure = answering("yes\n", "--delete-data")
        assert unsure.returncode == 1
        assert unsure.stderr.startswith("what an earlier destroy kept was not deleted; type the bucket's name")
        names = [one["Name"] for one in moto.client("s3").list_buckets()["Buckets"]]
        assert names == [bucket]

        kms, s3 = moto.client("kms", "eu-west-1"), moto.client("s3", "eu-west-1")
        versions = s3.list_object_versions(Bucket=bucket)
        assert (len(versions["Versions"]), len(versions["DeleteMarkers"])) == (2, 1)
        deleted = answering(f"{bucket}\n", "--delete-data")
        assert deleted.returncode == 0, deleted.stderr
        assert f"s3://{bucket} is deleted; its key is in 7 days" in deleted.stdout
        assert s3.list_buckets()["Buckets"] == []
        assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "PendingDeletion"
        assert kms.list_aliases(KeyId=key)["Aliases"] == []
        assert "there is nothing to destroy" in answering("", "--delete-data").stderr


@pytest.mark.parametrize("taken", ["ray", "mlflow", "grafana"])
def test_a_port_that_another_program_has_is_told(taken: str, programs: Path, tmp_path: Path) -> None:
    folder = with_state(tmp_path / "whole", WHOLE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ports = {name: port if name == taken else free_port() for name in ("ray", "mlflow", "grafana")}
        words = [word for name, number in ports.items() for word in (f"--{name}-port", number)]
        told = said(programs, "connect", "--chdir", folder, *words)
    assert told == (
        f"--{taken}-port {port}: can't be opened on this machine ([Errno 98] Address already in use); give another port"
    )


def test_files_that_are_not_there_are_told_before_an_earlier_build_is_lost(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "software"
    assert said(programs, "software", "upload", "--folder", folder).startswith(f"{folder}: nothing was built there; ")
    folder.mkdir()
    (folder / "earlier").touch()
    told = said(programs, "software", "build", "--folder", folder, "--prometheus", tmp_path / "none.tar.gz")
    assert told == f"--prometheus {tmp_path}/none.tar.gz: no such file; give the release's .tar.gz"
    assert os.listdir(folder) == ["earlier"]
