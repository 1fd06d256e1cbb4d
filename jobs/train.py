"""Training: `python -m jobs.train digits`; the same command goes on where it stopped."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.learner import run_url_of
from pipeline.runs import run_training


def job(config: Config) -> None:
    """Train, and tell the last validation likelihood and where the checkpoints lie."""
    metrics = run_training(config)
    print(
        f"trained {config.run.name}: {metrics['step']:,.0f} steps, {metrics['images_seen']:,.0f} images, "
        f"{config.data.val_split} {metrics['val/bits_per_dim']:.4f} bits/dim; checkpoints in {run_url_of(config)}"
    )


if __name__ == "__main__":
    sys.exit(run_job("jobs.train", "Train a model on prepared shards.", job))
