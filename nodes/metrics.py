"""What EC2 doesn't measure, sent to CloudWatch once a minute: the alarms stand on it."""

import os
import shutil
import subprocess
import time
import urllib.request

import boto3
import botocore.exceptions

from nodes.idle_guard import jobs_at_work
from nodes.places import DASHBOARD

PAUSE_SECONDS = 60


def ray_alive() -> float:
    """1 where Ray's control service answers on this head, else 0."""
    try:
        with urllib.request.urlopen(f"{DASHBOARD}/api/gcs_healthz", timeout=10) as answer:
            return float(answer.status == 200)
    except OSError:
        return 0.0


def known_jobs_at_work() -> float | None:
    """How many submitted jobs wait or run (`infra/destroy` refuses while any does), or None where Ray doesn't tell."""
    try:
        return float(jobs_at_work())
    except OSError:
        return None


def gpu_used_percent() -> float | None:
    """The busiest GPU's use, or None where there is none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    query = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return max((float(line) for line in told.stdout.split() if line.strip().isdigit()), default=None)


def measure(role: str) -> dict[str, float]:
    """This minute's metrics of a node by their CloudWatch names."""
    disk = shutil.disk_usage("/")
    found: dict[str, float | None] = {"DiskUsedPercent": 100 * disk.used / disk.total}
    if role == "head":
        found["RayAlive"] = ray_alive()
        found["JobsAtWork"] = known_jobs_at_work()
    if role == "worker":
        found["GpuUsedPercent"] = gpu_used_percent()
    return {name: value for name, value in found.items() if value is not None}


def main() -> None:
    """Measure and send for ever."""
    role, cluster = os.environ["PIXELCNN_ROLE"], os.environ["PIXELCNN_CLUSTER"]
    dimensions = [{"Name": "Cluster", "Value": cluster}, {"Name": "Role", "Value": role}]
    client = boto3.client("cloudwatch")
    while True:
        data = [{"MetricName": key, "Dimensions": dimensions, "Value": value} for key, value in measure(role).items()]
        try:
            client.put_metric_data(Namespace=os.environ["PIXELCNN_METRICS"], MetricData=data)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            print(f"metrics not sent: {error}", flush=True)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
