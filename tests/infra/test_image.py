"""The image for KubeRay, as far as it can be tried without a container engine: its form, what COPY and RUN do."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.infra.conftest import INFRA, ROOT
from tests.infra.test_terraform import checker

DOCKERFILE = (INFRA / "Dockerfile").read_text()


def copy_sources(folder: Path) -> None:
    """What the image is built from, into a folder of its own."""
    for *sources, target in (line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / target)


def test_hadolint_finds_nothing() -> None:
    told = subprocess.run([checker("hadolint"), INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "")


def test_what_is_copied_is_all_that_the_wheel_needs(tmp_path: Path) -> None:
    """The same files, in a folder of their own, become a wheel with every file of the project's packages."""
    copy_sources(tmp_path)
    assert "pip install --no-cache-dir --constraint constraints.txt ." in DOCKERFILE
    wheels = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, tmp_path]
    subprocess.run(command, check=True)
    (wheel,) = wheels.iterdir()
    tracked = subprocess.run(["git", "ls-files", "models", "pipeline", "jobs", "nodes"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout.split()  # fmt: skip
    assert set(tracked) <= set(zipfile.ZipFile(wheel).namelist())


def test_python_and_the_user_are_what_the_nodes_and_kuberay_expect() -> None:
    assert re.search(r"^FROM python:3\.12-", DOCKERFILE, re.MULTILINE)
    assert '"--python-version", "3.12"' in (INFRA / "software").read_text()
    assert DOCKERFILE.index("RUN pip install") < DOCKERFILE.index("USER 1000")
