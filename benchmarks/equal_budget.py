"""Each density model for the same time on two CPU cores: bits/dim on CIFAR-10's test split, and images/s.

    python -m benchmarks.equal_budget [PRESET ...] [SECTION.KEY=VALUE ...] [--minutes 5] [--data data/cifar10]

First the rate of every preset's training step is measured, one after the other, on the real stream (nothing else may
run then); the steps that fit into the budget follow from it, so that what runs beside the trainings doesn't matter.
Words with a = change all of the presets. The data must be prepared; runs go to RUNS/budget-PRESET.
"""

import argparse
import time
from typing import Any

from benchmarks.lone_worker import changed, changed_presets
from benchmarks.words import positive, run_script
from models.trainable import count_parameters
from pipeline.config import Config
from pipeline.cost import TRAINING_PASSES
from pipeline.launch import run_on_workers
from pipeline.learner import Learner, run_url_of
from pipeline.manifest import load_manifest
from pipeline.runs import run_training
from pipeline.worker import Worker

SMALL = ["cifar10-small", "cifar10-pixelcnn-small", "cifar10-row-lstm-small", "cifar10-diagonal-bilstm-small"]
INTERVALS = ("eval_interval", "sample_interval", "checkpoint_interval")
WARM_UP_STEPS = 3


def rate(worker: Worker, arguments: tuple[Config, float]) -> dict[str, Any]:
    """Images/s of the training loop's own step for that many seconds, the waiting for data included."""
    config, seconds = arguments
    learner = Learner(config, worker, load_manifest(config, config.data.train_split))
    learner.restore()
    with learner.stream() as stream:
        for _ in range(WARM_UP_STEPS):
            learner.advance(next(stream))
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            learner.advance(next(stream))
            steps += 1
        taken = time.perf_counter() - started
    return {"images_per_second": steps * config.train.batch_size / taken}


def on_this_machine(config: Config, words: argparse.Namespace) -> Config:
    """The configuration on one worker with two threads."""
    return changed(
        config,
        run={"name": f"budget-{config.preset}", "url": words.runs},
        data={"url": words.data},
        sample={"grid_columns": 1},
        cluster={"num_workers": 1, "cpus_per_worker": 2},
    )


def row(config: Config, images_per_second: float, minutes: float) -> str:
    """A line of the table: train for what fits into the budget and evaluate at the end."""
    steps = round(images_per_second * minutes * 60 / config.train.batch_size)
    metrics = run_training(changed(config, train={"steps": steps}, run=dict.fromkeys(INTERVALS, steps)))
    model = config.empty_model()
    flops = TRAINING_PASSES * model.flops(config.data.image_size, config.data.image_size) * images_per_second / 1e9
    return (
        f"| {config.preset} | {count_parameters(model) / 1e6:.3f} M | {flops / images_per_second:.3f} | "
        f"{images_per_second:.1f} | {flops:.0f} | {steps:,} | {metrics['images_seen']:,.0f} | "
        f"{metrics['val/bits_per_dim']:.4f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PRESET or CHANGE", help=", ".join(SMALL))
    parser.add_argument("--minutes", type=positive, default=5.0)
    parser.add_argument("--seconds", type=positive, default=30.0, help="for which each rate is measured")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--runs", default="runs", help="folder of the runs; must not hold any of them")
    words = parser.parse_intermixed_args()
    configs = [on_this_machine(config, words) for config in changed_presets(words.words, SMALL)[1]]
    rates = []
    for config in configs:
        answer = run_on_workers(config, rate, (config, words.seconds), f"{run_url_of(config)}-rate")
        rates.append(answer["images_per_second"])
        print(f"{config.preset}: {rates[-1]:.1f} images/s", flush=True)
    lines = [row(config, speed, words.minutes) for config, speed in zip(configs, rates, strict=True)]
    print(
        "| preset | parameters | GFLOP an image | images/s | GFLOP/s | steps | images | test bits/dim |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
