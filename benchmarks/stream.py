"""What the training stream delivers on one core: images/s, for one rank alone and for one of many.

    python -m benchmarks.stream PRESET [--seconds 8] [--worlds 1 8 64] [--data.url ... and other keys]

The data must be prepared. One process reads as rank 0 of each world size, without a model, on one core: its own images
are decoded and none is kept, the others' records only read and checked. `passed` are the records of all ranks that went
by: what the whole cluster can train on at most.
"""

import argparse
import os
import time

import torch

from benchmarks.lone_worker import changed
from benchmarks.words import count, positive, run_script
from pipeline.command_line import parse, with_absolute_urls
from pipeline.config import Config
from pipeline.manifest import Manifest, load_manifest
from pipeline.stream import TrainingStream

LOCAL_BATCH = 128


def row(config: Config, manifest: Manifest, world_size: int, seconds: float) -> str:
    """Read for that long from the first batch on, which isn't counted."""
    of_world = changed(
        config,
        data={"decoded_gigabytes": 0.0},
        train={"batch_size": LOCAL_BATCH * world_size},
        cluster={"num_workers": world_size},
    )
    with TrainingStream(of_world, manifest, rank=0, world_size=world_size, images_seen=0) as stream:
        next(stream)
        batches, started, processor = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            next(stream)
            batches += 1
        taken, busy = time.perf_counter() - started, time.process_time() - processor
    own = batches * LOCAL_BATCH
    passed = own * world_size
    cost = busy / passed * 1e6
    return f"| {world_size} | {own / taken:,.0f} | {passed / taken:,.0f} | {cost:.1f} | {busy / taken:.0%} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seconds", type=positive, default=8.0)
    parser.add_argument("--worlds", type=count, nargs="+", default=[1, 8, 64])
    words, overrides = parser.parse_known_args()
    config = with_absolute_urls(parse("benchmarks.stream", "", [words.preset, *overrides]))
    manifest = load_manifest(config, config.data.train_split)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        f"{manifest.version}, {manifest.num_images:,} images, {len(manifest.shards)} shards\n"
        "| world size | own images/s | records passed/s | CPU us a record passed | core used |\n"
        "| ---: | ---: | ---: | ---: | ---: |"
    )
    for world_size in words.worlds:
        print(row(config, manifest, world_size, words.seconds), flush=True)


if __name__ == "__main__":
    run_script(main)
