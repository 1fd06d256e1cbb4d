"""Ray on this node: who it is by the instance's metadata, then `ray start --block` for as long as its raylet lives."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import psutil

from nodes.autoscaler_config import fetch_autoscaler_config
from nodes.metadata import metadata
from nodes.places import AUTOSCALER, ENVIRONMENT, METRICS_PORT, RAY_FILES, RAY_PORT, RAY_TOKEN

LOOK_SECONDS = 2
STARTS = 3
ALLOCATE_SECONDS = "900"
"""After which an instance that didn't join, or was left over by an earlier head, is ended; Ray's own 3600 cost more."""


def identity() -> dict[str, str]:
    """The variables by which the autoscaler knows this node as the instance that it started.

    Raises:
        SystemExit: the instance has no tag ray-user-node-type, or its metadata doesn't show tags.
    """
    instance, kind = metadata("instance-id"), metadata("tags/instance/ray-user-node-type")
    if not instance or not kind:
        sys.exit(
            f"instance {instance}: no tag ray-user-node-type in its metadata; start it from the launch template, "
            "with instance_metadata_tags enabled"
        )
    return {"RAY_CLOUD_INSTANCE_ID": instance, "RAY_NODE_TYPE_NAME": kind}


def interface_of(address: str) -> str:
    """The name of the network interface that has an address.

    Raises:
        SystemExit: none has it.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if address in {found.address for found in addresses}:
            return name
    sys.exit(f"no network interface has {address}, which the instance's metadata names as local-ipv4")


def ray_environment(address: str) -> dict[str, str]:
    """What Ray and torch's process groups read from the environment on every node; docs/reliability.md says why."""
    interface = interface_of(address)  # else gloo takes whatever address the host's name has
    return identity() | {
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(RAY_TOKEN),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_actor_graceful_shutdown_timeout_ms": "5000",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": ALLOCATE_SECONDS,
        "RAY_PROMETHEUS_HOST": "http://127.0.0.1:9090",
        "RAY_GRAFANA_HOST": "http://127.0.0.1:3000",
    }


def ray_command(role: str, address: str) -> list[str]:
    """`ray start` for a head or a worker at an address of its own."""
    here = ["--block", "--node-ip-address", address, "--metrics-export-port", str(METRICS_PORT)]
    if role == "worker":
        return ["start", "--address", f"{os.environ['PIXELCNN_HEAD_ADDRESS']}:{RAY_PORT}", *here]
    # The dashboard, whose job port runs whatever it is sent, listens to this machine alone: Session Manager ends there.
    return [
        "start", "--head", "--port", str(RAY_PORT), "--dashboard-host", "127.0.0.1", "--num-cpus", "0",
        "--num-gpus", "0", "--autoscaling-config", str(AUTOSCALER), "--temp-dir", str(RAY_FILES), *here,
    ]  # fmt: skip


def has_raylet(starter: int) -> bool:
    """Whether a raylet lives below the process of `ray start`."""
    try:
        below = psutil.Process(starter).children(recursive=True)
        return any(found.name() == "raylet" and found.status() != psutil.STATUS_ZOMBIE for found in below)
    except psutil.NoSuchProcess:
        return False


def end(starter: int) -> None:
    """Kill `ray start` and all below it: asked in order, it would wait half a minute for a drain without a raylet."""
    process = psutil.Process(starter)
    for found in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()


def has_agent() -> bool:
    """Whether the raylet's agent, without which it ends itself, gives metrics."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", METRICS_PORT)) == 0


def stay_while_it_lives(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run `ray start --block` until it ends or its raylet does; its exit status, and whether this became a node.

    A raylet that was drained ends in order, and `ray start --block` then waits for ever on a machine without Ray.
    """
    with subprocess.Popen(command, env=environment) as starter:
        began, was_node = False, False
        while starter.poll() is None:
            time.sleep(LOOK_SECONDS)
            lives = has_raylet(starter.pid)
            if began and not lives:
                print("the raylet has ended, so this node is over", flush=True)
                end(starter.pid)
                break
            began, was_node = began or lives, was_node or (lives and has_agent())
    return starter.returncode, was_node


def stay(command: list[str], environment: dict[str, str]) -> int:
    """Stay while it lives, and start it anew where this didn't become a node, STARTS times in all; its exit status.

    A raylet ends itself where its agent, which imports much and asks nvidia-smi, is not up within 15 s, which nothing
    sets (https://github.com/ray-project/ray/issues/65983). A new machine would be as cold.
    """
    for count in range(1, STARTS + 1):
        status, was_node = stay_while_it_lives(command, environment)
        if was_node:
            break
        print(f"Ray did not come up, start {count} of {STARTS}", flush=True)
    return status


def main() -> None:
    """Be a node of Ray until Ray ends here."""
    role = os.environ["PIXELCNN_ROLE"]
    address = metadata("local-ipv4")
    if not address:
        sys.exit("the instance's metadata names no local-ipv4; it has no network interface")
    if role == "head":
        fetch_autoscaler_config()
    command = [str(ENVIRONMENT / "bin" / "ray"), *ray_command(role, address)]
    sys.exit(stay(command, os.environ | ray_environment(address)))


if __name__ == "__main__":
    main()
