"""Drawing images: `python -m jobs.sample digits --sample.count 100`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.runs import run_sampling


def job(config: Config) -> None:
    """Draw from the run's newest checkpoint, and tell where the images lie; the same command goes on after a stop."""
    drawn = run_sampling(config)
    likelihood = f" at {drawn['likelihood']}" if drawn["likelihood"] else ""
    print(f"drew {drawn['count']:,} images{likelihood}: samples.png, samples.npz and manifest.json in {drawn['url']}")


if __name__ == "__main__":
    sys.exit(run_job("jobs.sample", "Draw images from a trained run.", job))
