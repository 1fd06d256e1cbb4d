"""The main job from nothing to pictures: `make demo` runs `python -m jobs.demo digits`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.evaluate import in_words
from pipeline.prepare import prepare
from pipeline.runs import run_evaluation, run_sampling, run_training
from pipeline.storage import join


def job(config: Config) -> None:
    """Prepare, train, evaluate and draw; then tell the likelihood, where the grid lies and how to open MLflow."""
    prepare(config)
    run_training(config)
    measured = run_evaluation(config)
    drawn = run_sampling(config)
    print(
        f"\n{config.evaluated_split}: {in_words(measured)} over {measured['images']:,.0f} images\n"
        f"grid, a row a class: {join(drawn['url'], 'samples.png')}\n"
        "MLflow: make ui"
    )


if __name__ == "__main__":
    sys.exit(run_job("jobs.demo", "Prepare, train, evaluate and draw in one go.", job))
