"""What many tests stand on: a tiny configuration, a worker without Ray, a real S3 server, real images."""

import contextlib
import functools
import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import jaxtyping
import psutil
import pytest
from mlflow import MlflowClient

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# MLflow's server else starts ten processes for jobs of its own, 200 MB each.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
# torch's threads wait for each other at each small product, the more so where other processes have work for all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] += os.pathsep + "/usr/sbin"  # Debian keeps tc there

import torch

from pipeline import storage
from pipeline.config import Config
from pipeline.prepare import prepare
from pipeline.told import Orders

BIN = Path(sys.executable).parent
"""Where this environment's programs lie."""
PATIENCE = 300.0
"""Seconds for what takes some where nothing else runs; it only ends what would never come."""
STARTED = "Ray runtime started"
"""What `ray start` says once it has a node."""
LONGEST = (
    "integration/test_survival.py", "integration/test_search.py", "integration/test_two_workers.py",
    "infra/test_destroy.py", "infra/test_user_data.py", "infra/test_observers.py", "infra/test_mlflow_server.py",
    "infra/test_autoscaler.py", "integration", "pipeline",
)  # fmt: skip
"""Files of tests and folders of them: what takes longest, most of it waiting, and what takes long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, small tests last: processes that share the files then end at nearly the same time.

    infra/test_mlflow_server.py follows test_destroy.py in its process, where Terraform would make a cluster for others.
    """
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((n for n, name in enumerate(LONGEST) if name in (path, path.split("/")[0])), len(LONGEST))

    items.sort(key=rank)


@dataclass(frozen=True)
class LocalWorker:
    """One of Ray's workers without Ray: alone, on the CPU, told nothing."""

    run_url: str
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def report(self, metrics: dict[str, float]) -> None:
        pass

    def show(self, run: str, metrics: dict[str, float]) -> None:
        pass

    def orders(self) -> Orders:
        return Orders.NONE

    def is_preempted(self) -> bool:
        return False

    def hold(self) -> None:
        raise NotImplementedError


def tiny_config(folder: Path | str, **changes: dict[str, object]) -> Config:
    """The digits with a model and a run of seconds, everything below the folder."""
    sections: dict[str, dict[str, object]] = {
        "model": {
            "kind": "gated-pixelcnn", "num_layers": 2, "num_filters": 8, "kernel_size": 3, "head_filters": 16,
            "dropout": 0.1,
        },
        "data": {"url": f"{folder}/data", "records_per_shard": 150, "shuffle_shards": 3},
        "train": {"steps": 12, "batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "run": {
            "url": f"{folder}/runs", "name": "tiny", "log_interval": 2, "eval_interval": 6, "sample_interval": 12,
            "checkpoint_interval": 4,
        },
        "cluster": {"num_workers": 1},
        "sample": {"count": 20, "grid_columns": 2},
        "tracking": {"patience_seconds": 120.0},  # a busy machine makes the tables of a new sqlite file in 20 s
    }  # fmt: skip
    for section, values in changes.items():
        sections[section] |= values
    return Config.model_validate(sections)


@pytest.fixture(scope="session")
def prepared_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a tiny configuration, prepared once; never to be written to."""
    folder = tmp_path_factory.mktemp("digits")
    prepare(tiny_config(folder))
    return folder / "data"


@pytest.fixture
def digits(tmp_path: Path, prepared_digits: Path) -> Config:
    """A tiny configuration whose data set is prepared, as a copy of the test's own."""
    shutil.copytree(prepared_digits, tmp_path / "data")
    return tiny_config(tmp_path)


@pytest.fixture(scope="session")
def empty_tracking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's sqlite file with its tables, which take seconds to make, made once for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "empty.db"
    with filelock.FileLock(folder / "empty.lock"):
        if not file.exists():
            making = folder / "making.db"
            MlflowClient(f"sqlite:///{making}").search_experiments()
            with contextlib.closing(sqlite3.connect(making)) as tables, tables:
                tables.execute("DELETE FROM experiments")  # Default, whose artifacts would lie beside the first test's
            making.rename(file)
    return file


@pytest.fixture(autouse=True)
def tracked_here(
    empty_tracking: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """MLflow's sqlite file is the test's own, and gone with it."""
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copyfile(empty_tracking, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    yield
    shutil.rmtree(folder, ignore_errors=True)  # a killed job's process may still write there


def git(folder: Path, *words: str) -> str:
    """What git says of the folder, as somebody who may commit."""
    command = ["git", "-C", str(folder), "-c", "user.name=Test", "-c", "user.email=test@example.org", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def dying_at(number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The function, at whose call of that number, from 0, the work ends as by a kill."""
    calls = itertools.count()

    def dying(*given: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(*given)

    return dying


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something to become true, or fail saying what did not."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def has_settled(starter: "subprocess.Popen[bytes]", log: Path) -> bool:
    """Whether `ray start --block` has a node, or has ended."""
    return starter.poll() is not None or STARTED in log.read_text()


@contextlib.contextmanager
def ray_head(gcs: int, dashboard: int, environment: dict[str, str], log: Path, *words: str) -> Iterator[Path]:
    """The folder of a head that lasts as long as this, started anew where Ray gave up on it: its agent has 15 s."""
    files = Path(f"/tmp/ray-{gcs}")  # no longer, as the paths of Ray's sockets have a limit
    command = [
        BIN / "ray", "start", "--head", "--block", "--port", str(gcs), "--dashboard-port", str(dashboard),
        "--dashboard-agent-listen-port", str(free_port()), "--temp-dir", files, *words,
    ]  # fmt: skip
    for _ in range(3):
        with log.open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            wait_until(functools.partial(has_settled, process, log), 90, "the head")
            if process.poll() is None:
                yield files
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # asked to end with its GCS, a node would wait 30 s for it
            process.wait(60)
            shutil.rmtree(files, ignore_errors=True)
    raise AssertionError(log.read_text())


def processes_named(name: str, pids: Iterable[int]) -> list[psutil.Process]:
    """Those of the processes that live and whose command line begins with or names a program."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # of a zombie, too
            process = psutil.Process(pid)
            if name in " ".join(process.cmdline()[:1]):
                found.append(process)
    return found


def listening(port: int) -> bool:
    """Whether something answers on a port of 127.0.0.1."""
    return listening_at("127.0.0.1", port)


def listening_at(host: str, port: int) -> bool:
    """Whether something answers on a port of an address."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((host, port)) == 0


@dataclass(frozen=True)
class S3Server:
    """A real S3 server with one bucket, and the environment by which every AWS client finds it."""

    bucket: str
    environment: dict[str, str]
    root: Path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3` on 127.0.0.1."""
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    port = free_port()
    command = [BIN / "rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret", root]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: listening(port), 30, "rclone serve s3")
            environment = {
                "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            }  # fmt: skip
            yield S3Server("bucket", environment, root)
        finally:
            server.terminate()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty s3://bucket/prefix of the test's own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage._client.cache_clear()
    yield f"s3://{s3_server.bucket}/{request.node.name.replace('[', '-').replace(']', '')}"
    storage._client.cache_clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the checkout, or where SHARED_DATA points."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images: {folder} is absent; set SHARED_DATA")
    return folder


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Shape checks of signatures off: torch.compile can't trace through them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 kB of its own, which `mount -o remount,size=...` makes larger."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a full disk needs root and mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)
