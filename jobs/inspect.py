"""A prepared data set, verified and shown: `python -m jobs.inspect digits`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.inspection import SHEET_NAME, inspect
from pipeline.manifest import split_url
from pipeline.storage import join


def job(config: Config) -> None:
    """Print what the data set holds, and where its contact sheets are."""
    print("\n".join(inspect(config)))
    sheets = [join(split_url(config, split), SHEET_NAME) for split in (config.data.train_split, config.data.val_split)]
    print(f"every hash, record and image is sound; contact sheets: {', '.join(sheets)}")


if __name__ == "__main__":
    sys.exit(run_job("jobs.inspect", "Verify every byte of a prepared data set and show what is in it.", job))
