"""What the scripts beside it share: Terraform and its outputs, and what goes wrong in one line."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def terraform(chdir: Path, *words: str, output: bool = False) -> str:
    """Run Terraform, give what it prints if that is the output, or end with a line."""
    if not shutil.which("terraform"):
        sys.exit("terraform is not on PATH; install Terraform 1.11 or later")
    command = ["terraform", f"-chdir={chdir}", *words]
    run = subprocess.run(command, stdout=subprocess.PIPE if output else None, text=True, check=False)
    if run.returncode:
        sys.exit(f"terraform {words[0]} failed; what it said stands above. Run this again when it is set right")
    return run.stdout or ""


def outputs(chdir: Path, *wanted: str) -> dict[str, Any]:
    """Terraform's outputs that have a value, or end with a line where one that is wanted has none."""
    found = json.loads(terraform(chdir, "output", "-json", output=True))
    told = {key: entry["value"] for key, entry in found.items() if entry["value"] is not None}
    require(chdir, told, *wanted)
    return told


def require(chdir: Path, told: dict[str, Any], *wanted: str) -> None:
    """End with a line where an output that is wanted has no value."""
    if missing := [key for key in wanted if key not in told]:
        why = f"its cluster is not whole, {missing[0]} is missing" if told else "no cluster in Terraform's state"
        sys.exit(f"{chdir}: {why}; run `terraform -chdir=infra apply` to its end first")


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """End with a line where AWS refuses, can't be reached or has no credentials."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415 - not needed to build the software
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        sys.exit(f"AWS: {error}; set it right (AWS_PROFILE, its credentials and rights, the network), run this again")
