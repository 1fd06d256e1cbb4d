"""Search over depth, width or any other key: `python -m jobs.search digits`; the same command goes on."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.search.record import table
from pipeline.search.run import run_search
from pipeline.search.space import search_url


def job(config: Config) -> None:
    """Try what config.search says, and tell the table and where the best configuration lies."""
    records = run_search(config)
    url = search_url(config)
    print(table(records))
    print(f"best: {records[0].name}; train it with `python -m jobs.train --config {url}/best.json`")
    print(f"bits/dim over FLOPs an image: {url}/pareto.png")


if __name__ == "__main__":
    sys.exit(run_job("jobs.search", "Search over depth, width or any other key; a trial is a training run.", job))
