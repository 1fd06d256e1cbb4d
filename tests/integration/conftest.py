"""Jobs as a person starts them: processes of their own, on real Ray, S3 and MLflow."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE
from tests.host import ROOT, Job, end


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C reaches what is started: a shell's background passes it over, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def driver() -> Iterator[Callable[..., Any]]:
    """Calls functions in a process that may be a driver of Ray, one for a file's tests.

    `ray.shutdown` takes away the handlers by which pytest tells where its process crashed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *given: pool.submit(function, *given).result()


@pytest.fixture
def start_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts `python -m NAME ...`, or another program than this Python, in the repository.

    What still runs when the test is over is ended, and its output is in the test's report.
    """
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    jobs: list[Job] = []

    def start(*words: str, program: str = sys.executable, **changes: str) -> Job:
        process = subprocess.Popen(
            [program, "-u", "-m", *words], cwd=ROOT, env=environment | changes, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        jobs.append(Job(process))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            end(job.process)
            print(job.told)


@pytest.fixture
def run_job(start_job: Callable[..., Job]) -> Callable[..., tuple[int, str]]:
    """Runs a job to its end and gives its exit status and output."""

    def run(*words: str, **changes: str) -> tuple[int, str]:
        job = start_job(*words, **changes)
        return job.end(2 * PATIENCE), job.told

    return run
