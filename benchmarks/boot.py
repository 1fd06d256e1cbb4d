"""How long a node's software takes to install: the steps of infra/templates/boot.sh.tftpl after the download.

    infra/software build
    python -m benchmarks.boot --python python3.12

Wall time depends on what else the machine does; the processor's seconds hardly do.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
    """What fetch.py does beside the download itself."""
    for line in (software / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split()
        with (software / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                sys.exit(f"{software / name}: not what SHA256SUMS says; run `infra/software build`")


def main() -> None:
    """Install into an environment that is thrown away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--software", type=Path, default=ROOT / "build" / "software")
    parser.add_argument("--python", default="python3.12", help="the nodes' Python, which the wheels were built for")
    arguments = parser.parse_args()
    software = arguments.software.resolve()
    (pip,) = software.glob("pip-*.whl")
    (project,) = software.glob("pixelcnn_ray-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/env/bin/python"
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_FIND_LINKS")}

        def run(*words: str) -> None:
            subprocess.run(words, check=True, cwd=folder, env=clean)

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
    main()
