"""MLflow's UI in headless Chromium: what a person sees who compares the trials of a search."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline.config import Config
from pipeline.learner import run_url_of
from pipeline.manifest import load_manifest
from pipeline.mlflow_run import open_run
from pipeline.run_identity import identify
from pipeline.search.space import grid, parse_space, search_name, search_url, trial_config, trial_name
from pipeline.train import train
from tests.conftest import LocalWorker
from tests.mlflow_server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=30000",
    "--window-size=1400,900",
)  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    one = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one.uri)
    try:
        one.start()
        yield one
    finally:
        one.kill()


def search(config: Config) -> list[str]:
    """Train the trials of a search in this process, and give the ids of their MLflow runs."""
    manifest = load_manifest(config, "train")
    identity = identify(config, manifest, search_url(config), "abc123")
    parent = open_run(dataclasses.replace(identity, name=search_name(config)))
    for values in grid(parse_space(config)):
        trial = trial_config(config, values, trial_name(values))
        identity = identify(trial, manifest, run_url_of(trial), "abc123")
        tags = identity.tags | {"mlflow.parentRunId": parent}
        train(trial, LocalWorker(run_url_of(trial)), dataclasses.replace(identity, tags=tags))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    return [run.info.run_id for run in runs]


def seen(url: str, folder: Path) -> str:
    """The text and values of a page once its scripts have run."""
    command = ["chromium", *FLAGS, f"--user-data-dir={folder}/chromium", "--dump-dom", url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    return html.unescape(page)


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium, which shows MLflow's UI, is not installed")
def test_compare_shows_depth_filters_and_bits_per_dim_as_parallel_coordinates(
    digits: Config, server: Server, tmp_path: Path
) -> None:
    space = ("model.num_layers=choice(1,2)", "model.num_filters=choice(4,8)")
    runs = search(digits.model_copy(update={"search": digits.search.model_copy(update={"space": space})}))
    assert len(runs) == 4
    words = {"runs": json.dumps(runs), "experiments": json.dumps(["1"])}
    page = seen(f"{server.uri}/#/compare-runs?{urllib.parse.urlencode(words, quote_via=urllib.parse.quote)}", tmp_path)
    assert "Comparing 4 Runs from 1 Experiment" in page
    axes = re.findall(r'class="axis-title"[^>]*>([^<]+)<', page)
    assert axes == ["model.num_filters", "model.num_layers", "train/bits_per_dim"]
    for name in ("layers1-filters4", "layers1-filters8", "layers2-filters4", "layers2-filters8"):
        assert name in page
