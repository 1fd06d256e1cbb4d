"""What the sample grids of training cost, over what the training steps between two of them take, in one run.

    python -m benchmarks.grid_cost PRESET [--seconds 20] [--dotted.keys of the configuration ...]

On the preset's own workers: first the rate of the training step on the real stream, then a grid as the training loop
draws it, on rank 0 while the others wait. The data must be prepared.
"""

import argparse
import time

import torch.distributed

from benchmarks.equal_budget import rate
from benchmarks.words import positive, run_script
from pipeline.command_line import parse, with_absolute_urls
from pipeline.config import Config
from pipeline.drawing import training_grid
from pipeline.launch import run_on_workers
from pipeline.learner import Learner, run_url_of
from pipeline.manifest import load_manifest
from pipeline.worker import Worker


def step_and_grid(worker: Worker, arguments: tuple[Config, float]) -> dict[str, float]:
    """Seconds of a training step, and of the second of two grids."""
    config, seconds = arguments
    step = config.train.batch_size / rate(worker, (config, seconds))["images_per_second"]
    learner = Learner(config, worker, load_manifest(config, config.data.train_split))
    manifest = load_manifest(config, config.data.val_split)
    grid = 0.0
    if worker.rank == 0:
        for _ in range(2):
            started = time.perf_counter()
            training_grid(config, manifest, learner.averaged_model, worker)
            grid = time.perf_counter() - started
    if worker.world_size > 1:
        torch.distributed.barrier()
    return {"step": step, "grid": grid}


def main() -> None:
    """Print a line of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seconds", type=positive, default=20.0, help="for which the training step is measured")
    words, overrides = parser.parse_known_args()
    config = with_absolute_urls(parse("grid_cost", "", [words.preset, *overrides]))
    found = run_on_workers(config, step_and_grid, (config, words.seconds), f"{run_url_of(config)}-grid-cost")
    between = found["step"] * config.run.sample_interval
    print(
        f"| {config.preset} | {config.cluster.num_workers} | {found['step'] * 1000:.0f} | "
        f"{config.run.sample_interval:,} | {between:.1f} | {found['grid']:.2f} | {found['grid'] / between:.2%} |"
    )


if __name__ == "__main__":
    run_script(main)
