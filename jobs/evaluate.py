"""Likelihood of a split: `python -m jobs.evaluate digits --evaluate.split train`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.evaluate import in_words
from pipeline.report import MARKDOWN_NAME
from pipeline.runs import run_evaluation
from pipeline.storage import join, read


def job(config: Config) -> None:
    """Evaluate the run's newest checkpoint, and tell its report, and its measure, images and bare sum in a line."""
    result = run_evaluation(config)
    print(read(join(result["report"], MARKDOWN_NAME)).decode())
    print(
        f"{config.run.name} at step {result['step']:,} on {config.evaluated_split}: "
        f"{in_words(result, 6)}, over {result['images']:,.0f} images of {result['data_version']} "
        f"({', '.join(f'{name} {value!r}' for name, value in result.items() if name.startswith('sum_of_'))})"
    )
    print(f"report: {result['report']}")


if __name__ == "__main__":
    sys.exit(run_job("jobs.evaluate", "Measure the likelihood of every image of a split.", job))
