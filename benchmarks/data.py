"""Four readers of the same images on the same S3 server: ours, plain webdataset, litdata and mosaicml-streaming.

    python -m benchmarks.data --source FOLDER [--folder /tmp/...] [--repeat 3]

The others: `pip install -c constraints.txt -e ".[dev,benchmarks]"`. FOLDER is CIFAR-10 as `data.source` takes it.
The images are prepared once, given to every library in its own format, 2,000 a shard, and served by `rclone serve s3`
on this machine. A reader has one core, the server another. Cold: an empty cache folder. Warm: a new process, the folder
full. Resume: a new process with an empty folder goes on in the middle of the epoch; time to its first batch.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.data_readers import BATCH, READERS, config_of, resume_batch, without_torchvision
from benchmarks.lone_worker import changed
from benchmarks.words import count, run_script
from pipeline.manifest import load_manifest, split_url
from pipeline.prepare import prepare
from pipeline.shards import Record, fetch

PORT = 18_333
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}", "S3_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
}  # fmt: skip
URL = "s3://bucket/sets"
WORKERS = {"ours": (0,), "webdataset": (0, 1), "litdata": (0, 1), "mosaicml-streaming": (0, 1)}
"""DataLoader workers tried; ours has none, its read-ahead is a thread."""


def records_of(folder: str) -> Iterator[Record]:
    """The training split's records."""
    config = config_of(folder, "")
    manifest = load_manifest(config, "train")
    for shard in manifest.shards:
        yield from fetch(split_url(config, "train"), shard)


def sample_of(record: Record) -> dict[str, Any]:
    """What the other libraries keep of a record."""
    return {"png": record.png, "label": record.label}


def make_sets(source: str, folder: str) -> None:
    """The same images in the three formats; plain webdataset reads ours."""
    prepare(changed(config_of(folder, ""), data={"source": source}))
    import litdata

    litdata.optimize(
        sample_of, list(records_of(folder)), f"{folder}/litdata", chunk_size=2000, num_workers=1, verbose=False
    )
    without_torchvision()
    import streaming

    shard_bytes = load_manifest(config_of(folder, ""), "train").shards[0].bytes
    columns = {"png": "bytes", "label": "int"}
    with streaming.MDSWriter(out=f"{folder}/mosaicml", columns=columns, size_limit=shard_bytes) as writer:
        for record in records_of(folder):
            writer.write(sample_of(record))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[psutil.Process]:
    """A real S3 server of the folder's buckets, on the last core."""
    rclone = Path(sys.executable).parent / "rclone"
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{PORT}", "--auth-key", "key,secret", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            process = psutil.Process(server.pid)
            process.cpu_affinity([max(os.sched_getaffinity(0))])
            time.sleep(2)
            yield process
        finally:
            server.terminate()


@dataclass(frozen=True)
class Reading:
    """What one process of a reader took, and what the server sent it."""

    images: int
    seconds: float
    processor: float
    first: float
    sent: int


def reading(server: psutil.Process, reader: str, start: int, cache: str, num_workers: int) -> Reading:
    """Run one reader on the first core."""
    before = server.io_counters().write_chars
    words = [sys.executable, "-m", "benchmarks.data_readers", reader, str(start), URL, cache, str(num_workers)]
    told = subprocess.run(
        ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if told.returncode:
        raise RuntimeError(f"{reader}: {told.stderr[-3000:]}")
    return Reading(**json.loads(told.stdout.strip().splitlines()[-1]), sent=server.io_counters().write_chars - before)


def row(server: psutil.Process, reader: str, num_workers: int, caches: Path, repeat: int) -> str:
    """The medians of a reader, as a line of the table."""
    cold, warm, resumed = [], [], []
    for _ in range(repeat):
        shutil.rmtree(caches, ignore_errors=True)
        cold.append(reading(server, reader, 0, str(caches / "a"), num_workers))
        warm.append(reading(server, reader, 0, str(caches / "a"), num_workers))
        shutil.rmtree(caches / "a")
        resumed.append(reading(server, reader, resume_batch() * BATCH, str(caches / "a"), num_workers))
    cells = [reader, str(num_workers)]
    for readings in (cold, warm):
        cells += [
            f"{statistics.median(one.images / one.seconds for one in readings):,.0f}",
            f"{statistics.median(one.processor / one.images for one in readings) * 1e6:.0f}",
            f"{statistics.median(one.sent for one in readings) / 1e6:.1f}",
        ]
    cells += [
        f"{statistics.median(one.first for one in resumed):.2f}",
        f"{statistics.median(one.sent for one in resumed) / 1e6:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--folder", help="where the sets are kept; nothing: a temporary folder")
    parser.add_argument("--repeat", type=count, default=3)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(words.folder or temporary).absolute()
        sets = root / "s3/bucket/sets"
        if not sets.exists():
            make_sets(words.source, str(sets))
        print(
            "| reader | loader processes | cold: images/s | CPU us an image | MB read | warm: images/s "
            "| CPU us an image | MB read | resume: s to first batch | MB read |\n" + "| --- |" + " ---: |" * 9
        )
        with served(root / "s3") as server:
            for reader in words.readers:
                for num_workers in WORKERS[reader]:
                    print(row(server, reader, num_workers, root / "cache", words.repeat), flush=True)


if __name__ == "__main__":
    run_script(main)
