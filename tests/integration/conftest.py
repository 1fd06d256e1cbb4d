"""Jobs as a person starts them: processes of their own, on real Ray, S3 and MLflow."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.host import end

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start_job(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m jobs.NAME ...` in the repository, its output to a file that `process.log` names.

    What still runs when the test is over is ended, and its output is in the test's report.
    """
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    jobs: list[subprocess.Popen[str]] = []

    def start(*words: str, **changes: str) -> subprocess.Popen[str]:
        log = tmp_path / f"job-{len(jobs)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", *words], cwd=ROOT, env=environment | changes, stdout=output, stderr=output,
                text=True, start_new_session=True,
            )  # fmt: skip
        process.log = log  # type: ignore[attr-defined]
        jobs.append(process)
        return process

    yield start
    for process in jobs:
        if process.poll() is None:
            end(process)
            print(process.log.read_text())  # type: ignore[attr-defined]


@pytest.fixture
def run_job(start_job: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str]]:
    """Runs a job to its end and gives its exit status and output."""

    def run(*words: str, **changes: str) -> tuple[int, str]:
        process = start_job(*words, **changes)
        status = process.wait(timeout=2 * PATIENCE)
        return status, process.log.read_text()  # type: ignore[attr-defined]

    return run
