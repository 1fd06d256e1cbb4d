"""Seconds to draw images of 32x32x3 on the CPU: naive whole passes against the incremental sampler, in one run.

    python -m benchmarks.sampling [MODEL ...] [--batch 1 16 64 256] [--threads 2] [--passes 5]

The naive sampler runs the whole network once for each of the 3,072 sub-pixels; its time is extrapolated from some of
those passes, all of which cost the same. The floor is the FLOPs of one pass by the docstring's formula, over the matmul
rate measured in the same run: no sampler that computes each output once can be faster at that rate.
"""

import argparse
import time
from statistics import median

import torch

from benchmarks.train_step import MODELS, built, matmul_peak, model_name
from benchmarks.words import count
from models.autoregressive import AutoregressiveModel
from models.sampling import draw

SUB_PIXELS = 32 * 32 * 3


def naive_seconds(model: AutoregressiveModel, batch: int, passes: int) -> float:
    """Whole passes over the images, one for each sub-pixel."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8).to(memory_format=torch.channels_last)
    taken = []
    with torch.no_grad():
        for _ in range(passes + 1):
            started = time.perf_counter()
            model(images)
            taken.append(time.perf_counter() - started)
    return median(taken[1:]) * SUB_PIXELS


def incremental_seconds(model: AutoregressiveModel, batch: int, times: int) -> float:
    """The best of some whole drawings, everything that a drawing needs included."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        draw(model, height=32, width=32, seeds=range(batch))
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=list(MODELS), type=model_name, metavar="MODEL", help=", ".join(MODELS)
    )
    parser.add_argument("--batch", type=count, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--passes", type=count, default=5, help="of the naive sampler's 3,072 that are timed")
    parser.add_argument("--times", type=count, default=2, help="whole drawings of the incremental sampler")
    words = parser.parse_intermixed_args()
    torch.set_num_threads(words.threads)
    print(f"torch {torch.__version__}, {words.threads} threads, 32x32x3, float32")
    print(
        "| model | batch | naive s | incremental s | ratio | images/s | floor s | times the floor | matmul GFLOP/s |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in words.models:
        model = built(name).to(memory_format=torch.channels_last).eval()
        for batch in words.batch:
            peak = matmul_peak()
            floor = model.flops(32, 32) * batch / peak / 1e9
            naive, ours = naive_seconds(model, batch, words.passes), incremental_seconds(model, batch, words.times)
            print(
                f"| {name} | {batch} | {naive:,.0f} | {ours:.2f} | {naive / ours:,.0f} | {batch / ours:.2f} | "
                f"{floor:.2f} | {ours / floor:.1f} | {peak:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
