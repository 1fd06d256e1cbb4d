"""Prometheus as the head configures it: Ray's metrics and the trainer's, behind Ray's token; and Grafana's files."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from nodes.observers import DASHBOARDS, DATASOURCE, PROMETHEUS, TRAINING
from nodes.places import RAY_FILES, RAY_TOKEN
from pipeline.config import Config
from tests.conftest import BIN, free_port, ray_head, wait_until
from tests.infra.conftest import ROOT

pytestmark = [pytest.mark.infra, pytest.mark.timeout(400)]

TOKEN = "fedcba9876543210" * 4
DASHBOARD = json.loads(TRAINING)
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of clients of a head with token auth, whose files lie where the configuration says."""
    gcs = free_port()
    (tmp_path / "token").write_text(TOKEN)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW"))} | {
        "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000", "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    with ray_head(gcs, free_port(), environment, tmp_path / "head.log", "--num-cpus", "2") as files:
        wait_until((files / "prom_metrics_service_discovery.json").exists, 90, "Ray's list of nodes")
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{gcs}", "FILES": str(files)}


@pytest.fixture
def prometheus(head: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The server's address; it reads every second what the head's reads every 15."""
    program = shutil.which("prometheus")
    if not program:
        pytest.skip("prometheus is not on PATH (Debian has a package of it)")
    text = PROMETHEUS.replace(str(RAY_FILES), head["FILES"]).replace(str(RAY_TOKEN), head["RAY_AUTH_TOKEN_PATH"])
    (tmp_path / "prometheus.yml").write_text(text.replace("15s", "1s"))
    port = free_port()
    command = [
        program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (tmp_path / "prometheus.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_until(lambda: ready(port), 60, "Prometheus")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def ready(port: int) -> bool:
    """Whether Prometheus takes queries, which it does some time after it listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def asked(prometheus: str, query: str) -> list[dict[str, str]]:
    """Labels of the series that a query finds, each with its value."""
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}", timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return [one["metric"] | {"value": one["value"][1]} for one in found]


def test_prometheus_sees_the_cluster_and_the_training(
    head: dict[str, str], prometheus: str, digits: Config, tmp_path: Path
) -> None:
    wait_until(lambda: bool(asked(prometheus, "ray_node_cpu_count")), 90, "Ray's own metrics in Prometheus")

    words = {
        "data.url": digits.data.url, "run.url": digits.run.url, "run.name": "watched", "train.steps": 400,
        "train.batch-size": 32, "run.log-interval": 5, "run.eval-interval": 400, "run.sample-interval": 400,
        "model.num-layers": 2, "model.num-filters": 8, "model.head-filters": 16, "cluster.num-workers": 1,
    }  # fmt: skip
    job = [sys.executable, "-m", "jobs.train", "digits"]
    job += [word for key, value in words.items() for word in (f"--{key}", str(value))]
    told = subprocess.run(job, env=head, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]

    for name in ("bits_per_dim", "images_per_second", "data_wait_fraction"):
        (series,) = asked(prometheus, f"last_over_time(ray_pixelcnn_train_{name}[10m])")
        assert series["run"] == "watched"
        assert float(series["value"]) > 0

    # What Grafana would ask; there are no GPUs here.
    for expression in EXPRESSIONS:
        query = expression.replace("$run", ".*")
        if "_train_" in query:
            assert asked(prometheus, f"last_over_time({query}[10m])"), query
        elif not re.search("_gpus_|_gram_", query):  # a scrape that a busy machine misses leaves a gap
            wait_until(lambda query=query: bool(asked(prometheus, query)), 90, query)  # type: ignore[misc]


def test_grafanas_files_belong_together() -> None:
    (source,) = yaml.safe_load(DATASOURCE)["datasources"]
    places = {json.dumps(panel["datasource"]) for panel in DASHBOARD["panels"]}
    assert places == {json.dumps({"type": source["type"], "uid": source["uid"]})}
    assert [one["name"] for one in yaml.safe_load(DASHBOARDS)["providers"]] == ["ray", "training"]


def test_the_dashboard_names_metrics_that_ray_has() -> None:
    named = {name for text in EXPRESSIONS for name in re.findall(r"ray_(node_\w+)", text)}
    assert {"node_gpus_utilization", "node_gram_used"} < named <= METRICS_GAUGES.keys()
