"""Ctrl-C at a terminal, which every process of the job gets."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline.storage import exists
from tests.conftest import PATIENCE
from tests.host import Job
from tests.integration import test_search, test_two_workers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """What a shell starts in its background passes Ctrl-C over, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def status_by_run() -> dict[str, str]:
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("pixelcnn-ray").experiment_id])
    return {run.info.run_name: run.info.status for run in found}


def test_a_training_keeps_a_checkpoint_first(tmp_path: Path, start_job: Callable[..., Job]) -> None:
    job = start_job("jobs.train", "digits", *test_two_workers.words_for(str(tmp_path), "interrupted", 10_000, 10_000))
    job.wait_for("step 20/", PATIENCE)
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end(PATIENCE) == 143, job.told
    assert "stopping with a checkpoint; Ctrl-C again ends without it" in job.told
    stopped = re.search(r"^interrupted stopped after step (\d+) with a checkpoint; the same", job.told, re.MULTILINE)
    assert stopped, job.told
    assert exists(f"{tmp_path}/runs/interrupted/step-{int(stopped.group(1)):09d}/checkpoint.json")
    assert status_by_run() == {"interrupted": "KILLED"}


def test_a_search_ends_as_killed_and_not_as_if_all_had_been_tried(
    tmp_path: Path, start_job: Callable[..., Job]
) -> None:
    words = test_search.words_for(tmp_path, 1, 120, "none", "model.num_filters=choice(4,2)")
    search = start_job("jobs.search", *words)
    search.wait_for("filters4  25%", PATIENCE)
    os.killpg(search.process.pid, signal.SIGINT)
    assert search.end(PATIENCE) == 143, search.told
    assert search.told.endswith("digits-search stopped; the same command goes on")
    assert "| rank" not in search.told
    assert status_by_run() == {"digits-search": "KILLED", "filters4": "KILLED"}
    assert test_search.records_of(tmp_path)["filters4"]["state"] == "running"
