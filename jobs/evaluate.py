"""Likelihood of a split: `python -m jobs.evaluate digits --evaluate.split val`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.runs import run_evaluation


def job(config: Config) -> None:
    """Evaluate the run's newest checkpoint, and tell bits/dim, nats and the count of images."""
    result = run_evaluation(config)
    print(
        f"{config.run.name} at step {result['step']:,} on {config.evaluate.split}: "
        f"{result['bits_per_dim']:.6f} bits/dim, "
        f"{result['nats']:.4f} nats an image, over {result['images']:,.0f} images of {result['data_version']} "
        f"(sum of nats {result['sum_of_nats']!r})"
    )


if __name__ == "__main__":
    sys.exit(run_job("jobs.evaluate", "Measure the likelihood of every image of a split.", job))
