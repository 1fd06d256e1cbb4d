"""The commit of the code that runs: of a checkout, of a submitted folder, or of a wheel of `infra/software`."""

import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pipeline.submitted_job import job_metadata


def git_commit() -> str:
    """Its hash, with -dirty where the code was changed since; "unknown" where nothing tells it.

    The submitter of a folder tells it by `ray job submit --metadata-json '{"git_commit": "..."}'`: Ray leaves .git out.
    """
    return job_metadata().get("git_commit") or commit_of(Path(__file__)) or _of_wheel() or "unknown"


def commit_of(file: Path) -> str:
    """The commit of the checkout that tracks the file, "" where none does."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _of_wheel() -> str:
    """What `infra/software build` wrote behind the version, if this file is that installation's."""
    try:
        installed = distribution("pixelcnn-ray")
    except PackageNotFoundError:
        return ""
    if Path(str(installed.locate_file("pipeline/commit.py"))).resolve() != Path(__file__).resolve():
        return ""
    return installed.version.partition("+g")[2].replace(".dirty", "-dirty")
