"""Small changes of a recipe at the same FLOPs, each alone, on the real stream: bits/dim of both kinds of weights.

    python -m benchmarks.recipe [--data data/cifar10] [--pflop 0.012] [--drawn 80] [NAME CHANGES ...]

Words come in pairs: a variant's name and what it changes of the base, SECTION.KEY=VALUE,... or nothing. The base is the
preset `cifar10` with a small model, on CIFAR-10 as `jobs.prepare cifar10` writes it. The schedule of each ends with its
budget. With `--drawn` so many images are drawn from each one's averaged weights and their mean cost is told; a grid of
them is runs/recipe/NAME.png. What it says of training at full size is weak evidence.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from benchmarks.lone_worker import LoneWorker, changed, with_overrides
from models.autoregressive import AutoregressiveModel
from models.sampling import draw
from pipeline.config import Config
from pipeline.cost import training_flops
from pipeline.evaluate import evaluate
from pipeline.grid import grid_png
from pipeline.learner import Learner
from pipeline.manifest import Manifest, load_manifest
from pipeline.presets import PRESETS

WARM_UP_SHARE = 0.05
GRIDS = Path("runs/recipe")
GRID_COLUMNS = 10


def base(data: str) -> Config:
    """What the variants change."""
    return changed(
        PRESETS["cifar10"].config,
        model={"num_layers": 4, "num_filters": 24, "head_filters": 96},
        data={"url": data},
        train={"batch_size": 16, "ema_decay": 0.99, "horizontal_flips": False},
        run={"compile": "off", "precision": "float32"},
    )


def with_budget(config: Config, pflop: float) -> Config:
    """The configuration with the steps that the budget pays for."""
    steps = round(pflop * 1e15 / training_flops(config) / config.train.batch_size)
    return changed(config, train={"steps": steps, "warmup_steps": max(1, round(WARM_UP_SHARE * steps))})


def first_shards(manifest: Manifest, images: int) -> Manifest:
    """The split's first shards, as many as hold that many images."""
    count, shards = 0, []
    for shard in manifest.shards:
        if count >= images:
            break
        shards.append(shard)
        count += shard.records
    return manifest.model_copy(update={"shards": tuple(shards)})


def bits_of_drawn(name: str, config: Config, model: AutoregressiveModel, count: int) -> str:
    """Mean bits/dim of images drawn from an unconditional model, "" of none, and their grid in a file."""
    if not count:
        return ""
    size = config.data.image_size
    samples = draw(model, height=size, width=size, seeds=range(count))
    grid = GRIDS / f"{name}.png"
    grid.parent.mkdir(parents=True, exist_ok=True)
    grid.write_bytes(grid_png(samples.images, config.data.levels, GRID_COLUMNS))
    return f"{samples.nats.mean().item() / (math.log(2) * config.dims):.4f}"


def row(name: str, config: Config, test_images: int, drawn: int) -> str:
    """Train a variant, and a line of the table."""
    torch.manual_seed(config.train.seed)
    worker = LoneWorker(torch.device("cpu"))
    learner = Learner(config, worker, load_manifest(config, config.data.train_split))
    started, cpu = time.perf_counter(), time.process_time()
    with learner.stream() as stream:
        for _ in range(config.train.steps):
            learner.advance(next(stream))
    learner.require_finite()
    learner.fit_averaged()
    taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    test = first_shards(load_manifest(config, config.data.val_split), test_images)
    bits = [
        evaluate(config, test, model, worker, config.evaluate.batch_size).metrics("test")["test/bits_per_dim"]
        for model in (learner.model, learner.averaged_model)
    ]
    return (
        f"| {name} | {training_flops(config) / 1e9:.3f} | {config.train.steps:,} | {learner.images_seen:,} | "
        f"{bits[0]:.4f} | {bits[1]:.4f} | {test.num_images:,} | "
        f"{bits_of_drawn(name, config, learner.averaged_model, drawn)} | {taken:.0f} | {cpu:.0f} |"
    )


def main() -> None:
    """Print the table, a line as each variant ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["base", ""], metavar="NAME CHANGES")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--pflop", type=float, default=0.012)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--drawn", type=int, default=0, help="images to draw from each variant")
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    print(
        "| variant | GFLOP an image | steps | images | test bits/dim, raw | averaged | test images | "
        "drawn, bits/dim | s | CPU s |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    for name, changes in zip(words.variants[::2], words.variants[1::2], strict=True):
        config = with_overrides(base(words.data), [word for word in changes.split(",") if word])
        print(row(name, with_budget(config, words.pflop), words.test_images, words.drawn), flush=True)


if __name__ == "__main__":
    main()
