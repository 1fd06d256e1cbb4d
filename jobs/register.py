"""A trained run into MLflow's model registry: `python -m jobs.register RUN`, or PRESET and the run's own words."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.registration import config_of_run, register, told


def job(config: Config) -> None:
    """Register the run's newest checkpoint, and tell its version, its alias and how to serve it."""
    print(told(register(config)))


if __name__ == "__main__":
    sys.exit(run_job("jobs.register", "Make a run a version of a registered model.", job, config_of_run=config_of_run))
