"""Images to shards: `python -m jobs.prepare digits`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.prepare import prepare


def job(config: Config) -> None:
    """Write the configuration's data set to data.url."""
    prepare(config)


if __name__ == "__main__":
    sys.exit(run_job("jobs.prepare", "Write images as WebDataset shards with a manifest.", job))
