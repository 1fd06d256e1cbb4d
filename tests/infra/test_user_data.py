"""The user data as Terraform rendered it, on hosts of their own: a cluster that trains, and what becomes of it."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import BIN, listening_at, wait_until
from tests.infra.conftest import BRIDGE as ADDRESS
from tests.infra.conftest import INFRA, Cluster
from tests.infra.hosts import BRIDGE, Host, ip, require_namespaces
from tests.infra.stand_ins import SEE_NODES, start_worker

pytestmark = [pytest.mark.infra, pytest.mark.timeout(900)]

ASK = """
import json, sys, urllib.error, urllib.request
url, header = sys.argv[1], sys.argv[2]
try:
    headers = {"Authorization": header} if header else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, ""]))
except urllib.error.URLError as error:
    print(json.dumps([0, str(error.reason)]))
"""
SEE_RUNS = """
import mlflow
client = mlflow.MlflowClient()
runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
print([(run.info.run_name, run.info.status, "val/bits_per_dim" in run.data.metrics) for run in runs])
"""
PYTHON = "/opt/pixelcnn/env/bin/python"
DASHBOARD = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Machines:
    """Everything that was booted."""

    head: Host
    workers: list[Host]
    mlflow: Host
    bucket: str
    objects: Path
    secrets: dict[str, str]

    def all(self) -> list[Host]:
        """Every host."""
        return [self.head, self.mlflow, *self.workers]


def ask(host: Host, url: str, header: str = "") -> tuple[int, str]:
    """Status and body of a GET from a host; 0 where nothing answers."""
    status, body = json.loads(host.run(PYTHON, "-c", ASK, url, header))
    return status, body


def instance_user_data(cluster: Cluster, instance: str) -> str:
    """What EC2 gives to an instance."""
    found = cluster.moto.client("ec2").describe_instance_attribute(InstanceId=instance, Attribute="userData")
    return base64.b64decode(found["UserData"]["Value"]).decode()


def with_sqlite(user_data: str) -> str:
    """The MLflow server's user data as it is with mlflow_database_class = "": moto runs no Postgres."""
    return re.sub(r"(?m)^(PIXELCNN_DATABASE_\w+)=.*$", r"\1=", user_data)


def template_user_data(cluster: Cluster) -> str:
    """What EC2 gives to an instance of the workers' launch template."""
    template = cluster.resources()["aws_launch_template.worker"]["id"]
    versions = cluster.moto.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=template, Versions=["$Latest"]
    )
    encoded = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"]
    return base64.b64decode(encoded).decode()


@pytest.fixture(scope="module")
def machines(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """MLflow server, head and two workers, booted from their user data."""
    require_namespaces()
    folder = tmp_path_factory.mktemp("hosts")
    found, outputs = cluster.resources(), cluster.outputs()
    bucket = outputs["bucket"]
    objects = folder / "s3" / bucket
    (objects / "config").mkdir(parents=True)
    (objects / "config" / "autoscaler.yaml").write_text(found["aws_s3_object.autoscaler"]["content"])
    hosts = [
        Host("head", found["aws_instance.head"]["private_ip"], found["aws_instance.head"]["id"], "head", folder),
        Host("mlflow", found["aws_instance.mlflow"]["private_ip"], found["aws_instance.mlflow"]["id"], "", folder),
        *(
            Host(f"worker-{number}", f"10.64.0.{20 + number}", start_worker(cluster), "g6.xlarge", folder)
            for number in (1, 2)
        ),
    ]
    rclone = BIN / "rclone"
    ip("link", "add", BRIDGE, "type", "bridge")
    s3 = None
    try:
        ip("address", "add", f"{ADDRESS}/16", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        address = f"{ADDRESS}:{cluster.s3_port}"
        s3 = subprocess.Popen(
            [rclone, "serve", "s3", "--addr", address, "--auth-key", "key,secret", objects.parent],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: listening_at(ADDRESS, cluster.s3_port), 30, "rclone serve s3")
        upload = [sys.executable, INFRA / "software", "upload", "--folder", cluster.software, "--chdir", cluster.folder]
        subprocess.run(upload, env=cluster.environment | {"AWS_ENDPOINT_URL_S3": f"http://{address}"}, check=True)
        for host in hosts:
            host.start()
        worker = template_user_data(cluster)
        head, mlflow = (instance_user_data(cluster, host.instance) for host in hosts[:2])
        texts = [head, with_sqlite(mlflow), worker, worker]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.boot, hosts, texts))
        client = cluster.moto.client("secretsmanager")
        secrets = {
            key: client.get_secret_value(SecretId=name)["SecretString"] for key, name in outputs["secrets"].items()
        }
        yield Machines(hosts[0], hosts[2:], hosts[1], bucket, objects, secrets)
    finally:
        for host in hosts:
            host.stop()
        if s3:
            s3.terminate()
            s3.wait()
        ip("link", "delete", BRIDGE)
        ended = [host.instance for host in hosts[2:]]
        cluster.moto.client("ec2").terminate_instances(InstanceIds=ended)


def alive(machines: Machines) -> list[tuple[str, str, str]]:
    """Instance, node type and address of each node that the autoscaler sees alive."""
    told = machines.head.run(
        "env", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/run/pixelcnn/ray-token", PYTHON, "-c", SEE_NODES,
        f"{machines.head.address}:6379",
    )  # fmt: skip
    return sorted(tuple(node) for node in json.loads(told.splitlines()[-1]))


def logs(host: Host) -> str:
    """What a host's services printed."""
    return "".join(
        f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(host.file("/var/log").glob("*.log"))
    )


def submit(machines: Machines, *words: str) -> str:
    """`ray job submit` as a person's, through the forwarded port: on the head's own 127.0.0.1."""
    machines.head.write("/var/log/clients-token", machines.secrets["ray-token"])
    return machines.head.run(
        "env", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/var/log/clients-token", "/opt/pixelcnn/env/bin/ray", "job",
        "submit", "--address", DASHBOARD, "--", "python", "-m", *words, seconds=300,
    )  # fmt: skip


def test_head_and_workers_become_one_cluster(machines: Machines) -> None:
    expected = sorted((host.instance, host.kind, host.address) for host in (machines.head, *machines.workers))
    try:
        wait_until(lambda: alive(machines) == expected, 120, "two workers at the head")
    except AssertionError:
        raise AssertionError("\n".join(logs(host) for host in machines.all())) from None


def test_ray_refuses_whoever_lacks_the_token(machines: Machines) -> None:
    for path in ("/api/jobs/", "/api/v0/nodes", "/api/cluster_status"):
        assert ask(machines.head, DASHBOARD + path)[0] == 401
        assert ask(machines.head, DASHBOARD + path, f"Bearer {'f' * 64}")[0] == 403
        assert ask(machines.head, DASHBOARD + path, f"Bearer {machines.secrets['ray-token']}")[0] == 200


def test_the_job_port_is_the_heads_own(machines: Machines) -> None:
    status, why = ask(machines.workers[0], f"http://{machines.head.address}:8265/api/version")
    assert (status, "refused" in why) == (0, True), why


def test_mlflow_refuses_whoever_lacks_the_password(machines: Machines) -> None:
    url = f"http://{machines.mlflow.address}:5000/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        wait_until(lambda: ask(machines.head, url)[0] == 401, 120, "MLflow's server")
    except AssertionError:
        raise AssertionError(logs(machines.mlflow)) from None
    assert ask(machines.head, url, "Basic YWRtaW46d3Jvbmc=")[0] == 401


def test_a_submitted_job_trains_over_both_workers(machines: Machines) -> None:
    urls = ["--data.url", f"s3://{machines.bucket}/data/digits", "--run.url", f"s3://{machines.bucket}/runs"]
    short = [
        "--train.steps",
        "20",
        "--run.eval-interval",
        "20",
        "--run.sample-interval",
        "20",
        "--run.log-interval",
        "10",
    ]
    prepared = submit(machines, "jobs.prepare", "digits", *urls)
    assert "succeeded" in prepared
    # Each host has two CPUs here, so two workers of two can't share one.
    cpus = ["--cluster.num-workers", "2", "--cluster.cpus-per-worker", str(os.cpu_count())]
    told = submit(machines, "jobs.train", "digits", *urls, *short, *cpus)
    assert "step 20/20" in told, told[-3000:]
    assert (machines.objects / "runs/digits/step-000000020/checkpoint.json").is_file()
    sessions = [
        list(host.file("/var/lib/pixelcnn/ray").glob("session_*/logs/worker-*.out")) for host in machines.workers
    ]
    assert [any("RayTrainWorker" in path.read_text() for path in paths) for paths in sessions] == [True, True]

    found = machines.head.run(
        "env", "HOME=/var/lib/pixelcnn", f"MLFLOW_TRACKING_URI=http://{machines.mlflow.address}:5000", PYTHON, "-c",
        SEE_RUNS,
    )  # fmt: skip
    assert found.strip() == "[('digits', 'FINISHED', True)]"


def test_no_secret_is_in_a_command_line_or_a_log(machines: Machines) -> None:
    for host in machines.all():
        words = host.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "pixelcnn" in words
        written = [
            path
            for top in ("/var/log", "/var/lib/pixelcnn/ray")
            for path in host.file(top).rglob("*")
            if path.is_file()
        ]
        assert any(path.name.startswith("pixelcnn-") for path in written)
        for name, value in machines.secrets.items():
            assert value not in words, f"{name} in a command line of {host.name}"
            holders = [path.name for path in written if value.encode() in path.read_bytes()]
            assert [holder for holder in holders if holder != "clients-token"] == [], f"{name} on {host.name}"


def test_secrets_files_are_their_owners_alone(machines: Machines) -> None:
    for host, path in ((machines.head, "/run/pixelcnn/ray-token"), (machines.mlflow, "/run/pixelcnn/mlflow-auth.ini")):
        assert host.run("stat", "-c", "%a", path).strip() == "600"
        assert host.run("stat", "-c", "%a", "/run/pixelcnn").strip() == "700"


def test_spot_notice_drains_the_node_which_then_ends(machines: Machines) -> None:
    drained, other = machines.workers
    drained.write("/var/log/spot-notice", '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
    told = drained.file("/var/log/pixelcnn-spot.service.log")
    wait_until(lambda: "taken" in told.read_text(), 60, "the drain")
    wait_until(drained.file("/var/log/shutdown").exists, 150, "the drained worker's shutdown")
    assert not other.file("/var/log/shutdown").exists()


def test_worker_ends_itself_when_the_head_is_gone(machines: Machines) -> None:
    other = machines.workers[1]
    assert not other.file("/var/log/shutdown").exists()
    machines.head.stop()
    wait_until(other.file("/var/log/shutdown").exists, 90, "the shutdown of a worker without a head")
