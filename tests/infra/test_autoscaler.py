"""The autoscaler's file as Terraform rendered it, with a real Ray head and moto's EC2."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import BIN, free_port, listening, ray_head, wait_until
from tests.infra.conftest import ROOT, Cluster
from tests.infra.stand_ins import SEE_NODES, Ec2Proxy, RayletsForInstances, running_workers, start_worker

pytestmark = [pytest.mark.infra, pytest.mark.timeout(600)]

TOKEN = "0123456789abcdef" * 4

GPUS = """
import sys
import ray
ray.init(log_to_driver=False)
wanted = int(sys.argv[1])

@ray.remote(num_gpus=1, num_cpus=4)
def here():
    import os, time
    for _ in range(120):  # all nodes are there before any of the tasks ends, so none takes two
        if sum(node["Alive"] and "GPU" in node["Resources"] for node in ray.nodes()) == wanted:
            break
        time.sleep(1)
    return os.environ["RAY_CLOUD_INSTANCE_ID"], os.environ["RAY_NODE_TYPE_NAME"]

print("WORKERS", *sorted("/".join(one) for one in ray.get([here.remote() for _ in range(wanted)])))
"""

JOIN_SECONDS = 75
"""Within which an instance has to join here; nodes/ray_node.py gives it longer, as it installs its software first."""


@dataclass(frozen=True)
class Head:
    """A head with the rendered configuration, changed only in its idle time."""

    environment: dict[str, str]
    config: dict[str, Any]
    proxy: Ec2Proxy
    folder: Path

    def run_on_gpus(self, wanted: int) -> dict[str, str]:
        """Submit a job for so many GPUs at once; gives the node types of the instances that it ran on."""
        script = Path(self.environment["HOME"]) / "job"
        script.mkdir(exist_ok=True)
        (script / "gpus.py").write_text(GPUS)
        command = [BIN / "ray", "job", "submit", "--working-dir", script, "--", "python", "gpus.py", str(wanted)]
        told = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )  # fmt: skip
        monitor = "".join(path.read_text()[-3000:] for path in self.folder.glob("monitor*.log"))
        assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:] + monitor
        (line,) = [line for line in told.stdout.splitlines() if line.startswith("WORKERS")]
        return dict(word.split("/") for word in line.split()[1:])

    def nodes(self) -> list[list[str]]:
        """Instance, node type and address of each node that the autoscaler sees alive; none while there is no head."""
        told = subprocess.run(
            [sys.executable, "-c", SEE_NODES, self.environment["RAY_ADDRESS"]], env=self.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else []


@pytest.fixture
def head(cluster: Cluster, tmp_path: Path) -> Iterator[Head]:
    found = cluster.resources()
    config = yaml.safe_load(found["aws_s3_object.autoscaler"]["content"])
    config["idle_timeout_minutes"] = 0.75
    (tmp_path / "autoscaler.yaml").write_text(yaml.safe_dump(config))
    gcs, dashboard, ec2_port = free_port(), free_port(), free_port()
    proxy = Ec2Proxy(ec2_port, cluster.moto.port, {"g6.xlarge"})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW"))}
    environment |= cluster.moto.environment | {
        "AWS_ENDPOINT_URL_EC2": f"http://127.0.0.1:{ec2_port}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
        "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": found["aws_instance.head"]["id"],
        "RAY_NODE_TYPE_NAME": "head", "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(JOIN_SECONDS),
    }  # fmt: skip
    words = ["--num-cpus", "0", "--autoscaling-config", str(tmp_path / "autoscaler.yaml")]
    starting = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    joining = {key: value for key, value in starting.items() if key != "RAY_enable_autoscaler_v2"}

    def resources(kind: str) -> list[str]:
        of_kind = config["available_node_types"][kind]["resources"]
        return ["--num-gpus", str(int(of_kind["GPU"])), "--num-cpus", str(int(of_kind["CPU"]))]

    with contextlib.closing(proxy), ray_head(gcs, dashboard, starting, tmp_path / "head.log", *words) as files:
        raylets = RayletsForInstances(cluster.moto.client("ec2"), f"127.0.0.1:{gcs}", resources, joining, tmp_path)
        with contextlib.closing(raylets):
            made = Head(environment, config, proxy, files / "session_latest" / "logs")
            wait_until(lambda: bool(made.nodes()) and listening(dashboard), 90, "the head")
            yield made


def test_jobs_scale_from_nothing_by_priority_and_back_and_leftovers_are_adopted_or_ended(
    head: Head, cluster: Cluster
) -> None:
    ec2 = cluster.moto.client("ec2")
    assert running_workers(ec2) == {}
    used = head.run_on_gpus(2)

    # Spot had no capacity in any subnet, so both are on demand, of the preferred type.
    running = running_workers(ec2)
    assert used == dict.fromkeys(running, "g6.xlarge")
    assert len(running) == 2
    spot = [asked for asked in head.proxy.asked if "InstanceMarketOptions.MarketType" in asked]
    on_demand = [asked for asked in head.proxy.asked if "InstanceMarketOptions.MarketType" not in asked]
    assert {asked["SubnetId"] for asked in spot} == set(
        head.config["available_node_types"]["g6.xlarge"]["node_config"]["SubnetIds"]
    )
    assert sum(int(asked["MaxCount"]) for asked in on_demand) == 2
    assert all(tags["ray-cluster-name"] == "pixelcnn" for tags in running.values())

    # Every worker of Ray is an instance of EC2's, and the other way round.
    workers = {instance: kind for instance, kind, _ in head.nodes() if kind != "head"}
    assert workers == dict.fromkeys(running, "g6.xlarge")

    # A worker that another head started and that joins is used. The next one can't be of the preferred type any more.
    adopted = start_worker(cluster)
    head.proxy.without_any.add("g6.xlarge")
    head.proxy.asked.clear()
    used = head.run_on_gpus(4)
    assert used == {instance: tags["ray-user-node-type"] for instance, tags in running_workers(ec2).items()}
    known = {*running, adopted}
    assert used == {instance: "g6.xlarge" if instance in known else "g5.xlarge" for instance in used}
    assert adopted in used
    assert "g5.xlarge" in used.values()
    asked = [(one["InstanceType"], "InstanceMarketOptions.MarketType" in one) for one in head.proxy.asked]
    assert (asked[0], asked[-1]) == (("g6.xlarge", True), ("g5.xlarge", True))
    assert ("g6.xlarge", False) in asked

    # One that never joins is ended in time, the others when they have idled.
    leftover = start_worker(cluster, silent="yes")
    wait_until(lambda: not running_workers(ec2), 180, "idle workers ended")
    everyone = [*used, leftover]
    assert {one["State"]["Name"] for group in ec2.describe_instances(InstanceIds=everyone)["Reservations"]
            for one in group["Instances"]} == {"terminated"}  # fmt: skip


def test_ray_accepts_the_configuration_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    content = cluster.resources()["aws_s3_object.autoscaler"]["content"]
    (tmp_path / "autoscaler.yaml").write_text(content)
    read = (
        "import sys; from ray.autoscaler.v2.instance_manager.config import FileConfigReader as R; "
        "c = R(sys.argv[1]).get_cached_autoscaling_config(); "
        "print(c.get_max_num_worker_nodes(), c.disable_node_updaters(), sorted(c.get_node_type_configs()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", read, tmp_path / "autoscaler.yaml"], capture_output=True, text=True, check=True,
        env=os.environ | cluster.moto.environment,
    )  # fmt: skip
    assert told.stdout.strip() == "4 True ['g5.xlarge', 'g6.xlarge', 'head']"
