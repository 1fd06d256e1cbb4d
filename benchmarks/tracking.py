"""How long the training loop's thread is held by tracking, MLflow up, slow and down: `python -m benchmarks.tracking`.

The loop is the real one, on one worker without Ray; the calls that it makes are timed in its own thread.
"""

import argparse
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.words import count
from pipeline.learner import run_url_of
from pipeline.manifest import load_manifest
from pipeline.mlflow_run import SystemMetrics
from pipeline.prepare import prepare
from pipeline.run_identity import identify
from pipeline.tracking import Tracker
from pipeline.train import RankZeroTracker, train
from tests.conftest import LocalWorker, tiny_config
from tests.faulty_proxy import faulty_proxy
from tests.mlflow_server import Server

CALLS = {
    RankZeroTracker: ("__init__",), Tracker: ("metrics", "image", "tags", "undelivered"), SystemMetrics: ("read",),
}  # fmt: skip
LOG_INTERVAL, SLOW_SECONDS = 5, 2.0


@contextlib.contextmanager
def timed_calls() -> Iterator[dict[str, float]]:
    """Seconds by method that the calling thread spends in the tracker's methods while it lasts."""
    seconds: dict[str, float] = defaultdict(float)
    thread, inside = threading.get_ident(), [False]

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if threading.get_ident() != thread or inside[0]:
                return method(*arguments)
            inside[0], started = True, time.perf_counter()
            try:
                return method(*arguments)
            finally:
                seconds[name] += time.perf_counter() - started
                inside[0] = False

        return call

    before = [(kind, name, getattr(kind, name)) for kind, names in CALLS.items() for name in names]
    for kind, name, method in before:
        setattr(kind, name, timed(f"{kind.__name__}.{name}", method))
    try:
        yield seconds
    finally:
        for kind, name, method in before:
            setattr(kind, name, method)


def one_run(folder: Path, uri: str, steps: int) -> tuple[float, dict[str, float], int]:
    """Seconds of a training to its last step, seconds in tracking by method, and entries left undelivered."""
    config = tiny_config(
        folder,
        model={"num_layers": 6, "num_filters": 32, "kernel_size": 5},
        data={"url": str(folder.parent / "data")},
        train={"steps": steps, "batch_size": 64},
        run={"log_interval": LOG_INTERVAL, "eval_interval": 50, "sample_interval": 100, "checkpoint_interval": 50},
        tracking={"patience_seconds": 0.0},
    )
    prepare(config)
    os.environ["MLFLOW_TRACKING_URI"] = uri
    identity = identify(config, load_manifest(config, "train"), run_url_of(config), "unknown")
    started = time.perf_counter()
    with timed_calls() as seconds, contextlib.redirect_stdout(None):
        train(config, LocalWorker(run_url_of(config)), replace(identity, patience_seconds=0.0))
    total = time.perf_counter() - started
    kept = Path(run_url_of(config), "undelivered-tracking.json")
    return total, dict(seconds), kept.stat().st_size if kept.exists() else 0


def main() -> None:
    """Print a Markdown table: a training with MLflow up, slow and down."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=count, default=400)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # as on a worker with one CPU
    root = Path(tempfile.mkdtemp(prefix="tracking-"))
    server = Server(root)
    server.start()
    print("| MLflow | training s | in tracking s | share | of it: " + " | ".join(names()) + " | kept at the end kB |")
    print("| --- " + "| ---: " * (len(names()) + 4) + "|")
    try:
        with faulty_proxy(server.uri) as proxy:
            proxy.delay_seconds = SLOW_SECONDS
            uris = {"up": server.uri, f"{SLOW_SECONDS:g} s a request": proxy.url, "down": "http://127.0.0.1:9"}
            for name, uri in uris.items():
                total, seconds, kept = one_run(root / name.split()[0], uri, steps)
                spent = sum(seconds.values())
                parts = " | ".join(f"{seconds.get(one, 0.0):.3f}" for one in names())
                print(f"| {name} | {total:.1f} | {spent:.3f} | {spent / total:.2%} | {parts} | {kept / 1000:,.0f} |")
    finally:
        server.kill()
        shutil.rmtree(root)


def names() -> list[str]:
    """What is timed."""
    return [f"{kind.__name__}.{name}" for kind, methods in CALLS.items() for name in methods]


if __name__ == "__main__":
    main()
