"""Likelihood of a split: `python -m jobs.evaluate digits --evaluate.split val`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.evaluate import in_words
from pipeline.runs import run_evaluation


def job(config: Config) -> None:
    """Evaluate the run's newest checkpoint, and tell its measure, the count of images and the bare sum."""
    result = run_evaluation(config)
    print(
        f"{config.run.name} at step {result['step']:,} on {config.evaluate.split}: "
        f"{in_words(result, 6)}, over {result['images']:,.0f} images of {result['data_version']} "
        f"({', '.join(f'{name} {value!r}' for name, value in result.items() if name.startswith('sum_of_'))})"
    )


if __name__ == "__main__":
    sys.exit(run_job("jobs.evaluate", "Measure the likelihood of every image of a split.", job))
