"""What the loader's thread takes from the thread that gives a GPU its work, as both want Python's lock.

    python -m benchmarks.beside_loader PRESET [--steps 300] [--calls 1500 5000] [--rate 2300] [--data.url ...]

In place of a GPU's work the host calls that many tiny operations a step, each of which lets go of the lock as a launch
does; the stream's batches are taken at that many images/s. With nothing kept, and with data.decoded_gigabytes as it is,
then from the second epoch on. The data must be prepared, and small.
"""

import argparse
import statistics
import time

import torch

from benchmarks.lone_worker import changed, pass_first_epoch
from benchmarks.words import count, positive, run_script
from pipeline.command_line import parse, with_absolute_urls
from pipeline.config import Config
from pipeline.manifest import Manifest, load_manifest
from pipeline.stream import TrainingStream


def milliseconds_of_calls(calls: int, tensor: torch.Tensor) -> float:
    """What so many operations take the host."""
    started = time.perf_counter()
    for _ in range(calls):
        torch.add(tensor, 1.0)
    return 1e3 * (time.perf_counter() - started)


def row(config: Config, manifest: Manifest, calls: int, steps: int, rate: float) -> str:
    """The host's milliseconds a step alone and beside the loader, and the loader's own milliseconds a batch."""
    tensor, period = torch.zeros(8, 8), config.train.batch_size / rate
    alone = [milliseconds_of_calls(calls, tensor) for _ in range(steps)]
    batches = -(-manifest.num_images // config.train.batch_size)
    with TrainingStream(config, manifest, rank=0, world_size=1, images_seen=0) as stream:
        pass_first_epoch(stream)
        for _ in range(config.data.prefetch_batches):
            next(stream)
        started = time.perf_counter()
        for _ in range(batches):
            next(stream)
        loader = 1e3 * (time.perf_counter() - started) / batches
        beside = []
        for _ in range(steps):
            started = time.perf_counter()
            next(stream)
            beside.append(milliseconds_of_calls(calls, tensor))
            time.sleep(max(0.0, period - (time.perf_counter() - started)))
    return (
        f"| {config.data.decoded_gigabytes:g} | {calls} | {statistics.median(alone):.1f} | "
        f"{statistics.median(beside):.1f} | {statistics.mean(beside):.1f} | {loader:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--steps", type=count, default=300)
    parser.add_argument("--calls", type=count, nargs="+", default=[1500, 5000])
    parser.add_argument("--rate", type=positive, default=2300.0, help="images/s")
    words, overrides = parser.parse_known_args()
    config = with_absolute_urls(parse("benchmarks.beside_loader", "", [words.preset, *overrides]))
    manifest = load_manifest(config, config.data.train_split)
    torch.set_num_threads(1)
    print(
        "| data.decoded_gigabytes | calls a step | alone, ms | beside the loader: median, ms | mean, ms "
        "| loader alone, ms a batch |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for calls in words.calls:
        for one in (changed(config, data={"decoded_gigabytes": 0.0}), config):
            print(row(one, manifest, calls, words.steps, words.rate), flush=True)


if __name__ == "__main__":
    run_script(main)
