"""Checks before an expensive run: `python -m jobs.doctor cifar10 --data.url ... --run.url ...`."""

import sys

from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.doctor import examine, table
from pipeline.errors import UserError


def job(config: Config) -> None:
    """Print a line a check; the status is 1 if one failed."""
    findings = examine(config)
    print(table(findings))
    failed = [finding.check for finding in findings if finding.verdict == "fail"]
    if failed:
        raise UserError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run_job("jobs.doctor", "Check the cluster, its storage and its tracking before a run.", job))
