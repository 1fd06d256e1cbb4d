"""Small changes of a recipe at the same FLOPs, each alone, on the real stream: bits/dim of both kinds of weights.

    python -m benchmarks.recipe [--data data/cifar10] [--pflop 0.012] [--draw] [NAME CHANGES ...]

Words come in pairs: a variant's name and what it changes of the base, SECTION.KEY=VALUE,... or nothing. The base is the
preset `cifar10` with a small model, on CIFAR-10 as `jobs.prepare cifar10` writes it. The schedule of each ends with its
budget. Measured are the first shards of either split that hold `--test-images`. With `--draw` a sample grid is drawn
from each one's averaged weights, as in training: its images' mean cost is told, and it is kept as
runs/recipe/NAME.png. What it says of training at full size is weak evidence.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.lone_worker import LoneWorker, changed, with_overrides
from benchmarks.words import count, positive, run_script
from pipeline.config import Config
from pipeline.cost import training_flops
from pipeline.drawing import training_grid
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.learner import Learner
from pipeline.manifest import Manifest, load_manifest
from pipeline.presets import PRESETS

WARM_UP_SHARE = 0.05
GRIDS = Path("runs/recipe")
HEADING = """\
| variant | GFLOP an image | steps | images | test bits/dim, raw | averaged | training images, averaged \
| test images | drawn, bits/dim | s | CPU s |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def base(data: str) -> Config:
    """What the variants change."""
    return changed(
        PRESETS["cifar10"].config,
        model={"num_layers": 4, "num_filters": 24, "head_filters": 96},
        data={"url": data},
        train={"batch_size": 16, "ema_decay": 0.99, "horizontal_flips": False},
        run={"compile": "off", "precision": "float32"},
    )


def variants_of(words: list[str], config: Config) -> list[tuple[str, Config]]:
    """The names and configurations of the words' variants.

    Raises:
        UserError: a name has no changes beside it, or a change doesn't fit.
    """
    if len(words) % 2:
        raise UserError(f'variant {words[-1]}: its changes are missing; give "" for none')
    changes = [[change for change in word.split(",") if change] for word in words[1::2]]
    return [(name, with_overrides(config, own)) for name, own in zip(words[::2], changes, strict=True)]


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


def drawn(name: str, learner: Learner, test: Manifest) -> str:
    """Mean bits/dim of the images of a sample grid of training, "" where there is none, and the grid in a file."""
    found = training_grid(learner.config, test, learner.averaged_model, learner.worker)
    if found is None:
        return ""
    grid, cost = GRIDS / f"{name}.png", found[1]
    grid.parent.mkdir(parents=True, exist_ok=True)
    grid.write_bytes(found[0])
    return f"{cost.metrics('drawn')['drawn/bits_per_dim']:.4f}" if cost else ""


def row(name: str, config: Config, test_images: int, draws: bool) -> str:
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
    train, test = (
        first_shards(manifest, test_images)
        for manifest in (learner.manifest, load_manifest(config, config.data.val_split))
    )
    bits = [
        evaluate(config, images, model, worker, config.evaluate.batch_size).metrics("at")["at/bits_per_dim"]
        for model, images in ((learner.model, test), (learner.averaged_model, test), (learner.averaged_model, train))
    ]
    return (
        f"| {name} | {training_flops(config) / 1e9:.3f} | {config.train.steps:,} | {learner.images_seen:,} | "
        f"{' | '.join(f'{one:.4f}' for one in bits)} | {test.num_images:,} | "
        f"{drawn(name, learner, test) if draws else ''} | {taken:.0f} | {cpu:.0f} |"
    )


def main() -> None:
    """Print the table, a line as each variant ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["base", ""], metavar="NAME CHANGES")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--pflop", type=positive, default=0.012)
    parser.add_argument("--test-images", type=count, default=2000)
    parser.add_argument("--draw", action="store_true", help="a grid from each variant")
    parser.add_argument("--threads", type=count, default=1)
    words = parser.parse_intermixed_args()
    torch.set_num_threads(words.threads)
    variants = variants_of(words.variants, base(words.data))
    print(HEADING, flush=True)
    for name, config in variants:
        print(row(name, with_budget(config, words.pflop), words.test_images, words.draw), flush=True)


if __name__ == "__main__":
    run_script(main)
