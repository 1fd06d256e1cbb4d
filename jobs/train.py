"""Training: `python -m jobs.train digits`; the same command goes on where it stopped."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.evaluate import in_words
from pipeline.learner import run_url_of
from pipeline.registration import compared_on, register, told
from pipeline.runs import run_training


def job(config: Config) -> None:
    """Train, and tell the last validation measure and where the checkpoints lie; then register the run, if asked to."""
    if config.tracking.register_as:
        compared_on(config)  # before the training rather than after it
    metrics = run_training(config)
    measured = in_words({name: value for name, value in metrics.items() if name.startswith("val/")})
    print(
        f"trained {config.run.name}: {metrics['step']:,.0f} steps, {metrics['images_seen']:,.0f} images, "
        f"{config.data.val_split} {measured}; checkpoints in {run_url_of(config)}"
    )
    if config.tracking.register_as:
        print(told(register(config)))


if __name__ == "__main__":
    sys.exit(run_job("jobs.train", "Train a model on prepared shards.", job))
