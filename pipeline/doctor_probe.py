"""What one node of the cluster can and has: looked at on the node itself, told without a judgement."""

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass

import torch
import torch.distributed

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import sum_over_workers
from pipeline.manifest import load_manifest, split_url
from pipeline.mlflow_run import require_server
from pipeline.storage import delete, join, read, write
from pipeline.worker import Worker

READ_BYTES = 64_000_000
"""Most that a node reads to measure its throughput."""
ALL_REDUCE_FLOATS = 1 << 23
ALL_REDUCES = 5


@dataclass(frozen=True)
class NodeReport:
    """A node's name, versions, clock, disk and what it can reach; errors are texts, empty where there is none."""

    host: str
    versions: dict[str, str]
    gpus: list[str]
    clock: float
    """Seconds since 1970 as the node sees it."""
    free_gigabytes: float
    read_megabytes_per_second: float
    read_error: str
    write_error: str
    tracking_error: str


def probe(config: Config, run_url: str, tracking_uri: str) -> NodeReport:
    """Look at this node."""
    speed, read_error = _read_speed(config)
    return NodeReport(
        host=socket.gethostname(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none",
            "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none",
        },
        gpus=_gpus(),
        clock=time.time(),
        free_gigabytes=shutil.disk_usage(config.data.cache_folder or tempfile.gettempdir()).free / 1e9,
        read_megabytes_per_second=speed,
        read_error=read_error,
        write_error=_error_of(_write_and_delete, run_url),
        tracking_error=_error_of(require_server, tracking_uri),
    )


def gigabytes_all_reduced_per_second(worker: Worker) -> float:
    """Gradients of 33.6 MB that all workers exchange, in 1e9 bytes a second of each worker."""
    gradients = torch.ones(ALL_REDUCE_FLOATS, device=worker.device)
    seconds = []
    for _ in range(1 + ALL_REDUCES):
        sum_over_workers(worker, 0.0)
        started = time.perf_counter()
        torch.distributed.all_reduce(gradients)
        gradients[0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 4 * ALL_REDUCE_FLOATS * ALL_REDUCES / sum(seconds[1:]) / 1e9


def _gpus() -> list[str]:
    """Names and drivers of this node's GPUs, whether Ray gives them to this process or not."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.strip().splitlines()


def _read_speed(config: Config) -> tuple[float, str]:
    """Megabytes a second of the training split's first shards, and what went wrong."""
    try:
        manifest = load_manifest(config, config.data.train_split)
        started, size = time.perf_counter(), 0
        for shard in manifest.shards:
            size += len(read(join(split_url(config, manifest.split), shard.file)))
            if size >= READ_BYTES:
                break
    except UserError as error:
        return 0.0, str(error)
    return size / 1e6 / (time.perf_counter() - started), ""


def _write_and_delete(run_url: str) -> None:
    url = join(run_url, f".doctor-{socket.gethostname()}-{os.getpid()}")
    write(url, b"probe")
    try:
        if read(url) != b"probe":
            raise UserError(f"{url}: what was written is not what is read; use storage that all nodes see alike")
    finally:
        delete(url)


def _error_of(function: object, argument: str) -> str:
    assert callable(function)
    try:
        function(argument)
    except UserError as error:
        return str(error)
    return ""
