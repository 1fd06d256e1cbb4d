"""How long a node's software takes to install: the steps of infra/templates/boot.sh.tftpl after the download.

    infra/software build
    python -m benchmarks.boot --python python3.12

Wall time depends on what else the machine does; the processor's seconds hardly do.
"""

import argparse
import hashlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.words import run_program, run_script
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]


def measured(name: str, step: Callable[[], None]) -> None:
    """Run a step and print its seconds, by the clock and of processors."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before, began = [resource.getrusage(kind) for kind in kinds], time.monotonic()
    step()
    wall = time.monotonic() - began
    after = [resource.getrusage(kind) for kind in kinds]
    used = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    print(f"| {name} | {wall:.0f} | {used:.0f} |", flush=True)


def check_hashes(software: Path) -> None:
    """What fetch.py does beside the download itself.

    Raises:
        UserError: there is no SHA256SUMS, or a file isn't there or isn't what it says.
    """
    sums = software / "SHA256SUMS"
    if not sums.is_file():
        raise UserError(f"{sums}: no such file; run `infra/software build`")
    for line in sums.read_text().splitlines():
        sha256, name = line.split()
        path = software / name
        if not path.is_file():
            raise UserError(f"{path}: no such file, yet SHA256SUMS names it; run `infra/software build`")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise UserError(f"{path}: not what SHA256SUMS says; run `infra/software build`")


def the_wheel(software: Path, name: str) -> Path:
    """The one wheel of that name.

    Raises:
        UserError: there is none, or more than one.
    """
    found = list(software.glob(f"{name}-*.whl"))
    if len(found) != 1:
        raise UserError(f"--software {software}: {len(found)} files {name}-*.whl, not 1; run `infra/software build`")
    return found[0]


def main() -> None:
    """Install into an environment that is thrown away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--software", type=Path, default=ROOT / "build" / "software")
    parser.add_argument("--python", default="python3.12", help="the nodes' Python, which the wheels were built for")
    arguments = parser.parse_args()
    software = arguments.software.resolve()
    pip, project = (the_wheel(software, name) for name in ("pip", "pixelcnn_ray"))
    if not shutil.which(arguments.python):
        raise UserError(f"--python {arguments.python}: no such program; give the Python that the wheels were built for")
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/env/bin/python"
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_FIND_LINKS")}

        def run(*words: str) -> None:
            run_program(f"`{' '.join(words)}`", words, clean, folder)

        pip_install = [python, f"{pip}/pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        offline = ["--no-index", "--find-links", str(software), "--constraint", str(software / "constraints.txt")]

        print("| step | seconds | of processors |\n| --- | --- | --- |")
        measured("hashes", lambda: check_hashes(software))
        measured("environment", lambda: run(arguments.python, "-m", "venv", "--without-pip", f"{folder}/env"))
        measured(
            "the project's wheel", lambda: run(*pip_install, *offline, "--force-reinstall", "--no-deps", str(project))
        )
        measured("its dependencies", lambda: run(*pip_install, *offline, "pixelcnn-ray[nodes]"))
        measured("first import of Ray and torch", lambda: run(python, "-c", "import ray, torch, mlflow"))
        wheels, installed = (
            sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e9
            for place in (software, Path(folder))
        )
        print(f"\n{wheels:.2f} GB of wheels became {installed:.2f} GB of files")


if __name__ == "__main__":
    run_script(main)
