"""`ray start --head` and `ray job submit` with no other preparation than the install."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.conftest import BIN, free_port, ray_head
from tests.integration.conftest import ROOT


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a one-node cluster on ports of its own; at the end its own processes are ended."""
    dashboard, gcs = free_port(), free_port()
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home), "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "GCS_PORT": str(gcs),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    with ray_head(gcs, dashboard, environment, tmp_path / "head.log", "--num-cpus", "2"):
        yield environment


@pytest.mark.cluster
@pytest.mark.timeout(280)
def test_digits_train_as_a_submitted_job(head: dict[str, str]) -> None:
    intervals = {"train.steps": 20, "run.eval-interval": 20, "run.sample-interval": 20, "run.log-interval": 10}
    words = [word for key, value in intervals.items() for word in (f"--{key}", str(value))]
    submitted = subprocess.run(
        [sys.executable, "-c", WAIT_AND_SUBMIT, BIN / "ray", *words], cwd=ROOT, env=head, capture_output=True,
        text=True, timeout=270, check=False,
    )  # fmt: skip
    told = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, told[-4000:]
    assert re.search(r"step 20/20  images 1,280  [\d.]+ bits/dim", told)
    home = Path(head["HOME"], "pixelcnn-ray")
    assert (home / "runs/digits/step-000000020/checkpoint.json").is_file()
    (run,) = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").search_runs(["1"])
    assert run.data.tags["ray_job_id"].startswith("raysubmit_")
    assert run.data.tags["git_commit"] == "told with the job"
    assert run.data.tags["cluster"].endswith(f":{head['GCS_PORT']}")


WAIT_AND_SUBMIT = """
import os, subprocess, sys, time, urllib.request
for _ in range(120):
    try:
        urllib.request.urlopen(os.environ["RAY_API_SERVER_ADDRESS"] + "/api/version", timeout=2)
        break
    except OSError:
        time.sleep(0.5)
ray, *words = sys.argv[1:]
submit = [ray, "job", "submit", "--working-dir", ".", "--metadata-json", '{"git_commit": "told with the job"}']
sys.exit(subprocess.run([*submit, "--", "python", "-m", "jobs.train", "digits", *words]).returncode)
"""
