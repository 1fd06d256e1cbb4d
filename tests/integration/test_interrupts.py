"""Ctrl-C at a terminal, which every process of the job gets."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage import exists
from tests.conftest import PATIENCE
from tests.host import Job
from tests.integration.test_search import runs_by_name
from tests.integration.test_two_workers import words_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("foreground")]


def test_a_training_keeps_a_checkpoint_first(tmp_path: Path, start_job: Callable[..., Job]) -> None:
    words = words_for(str(tmp_path), "interrupted", 10_000, 10_000)
    job = start_job("jobs.train", "digits", *words, "--cluster.num-workers", "1")
    job.wait_for("step 20/", PATIENCE)
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end(PATIENCE) == 143, job.told
    assert "stopping with a checkpoint; Ctrl-C again ends without it" in job.told
    stopped = re.search(r"^interrupted stopped after step ([\d,]+) with a checkpoint; the", job.told, re.MULTILINE)
    assert stopped, job.told
    step = int(stopped.group(1).replace(",", ""))
    assert exists(f"{tmp_path}/runs/interrupted/step-{step:09d}/checkpoint.json")
    assert {name: run.info.status for name, run in runs_by_name().items()} == {"interrupted": "KILLED"}
