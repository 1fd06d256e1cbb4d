"""What the targets of the Makefile leave alone, and how tests end by which a process dies."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_clean_removes_the_demos_files_and_nobody_elses(tmp_path: Path) -> None:
    files = ["data/digits/val/manifest.json", "runs/digits/run.json", "data/pets/manifest.json", "runs/pets/run.json",
             "mlflow.db", "mlartifacts/1/config.json"]  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "-f", MAKEFILE, "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = [name for name in files if (tmp_path / name).exists()]
    assert left == files[2:]
    assert not (tmp_path / "data/digits").exists()
    assert not (tmp_path / "runs/digits").exists()


def test_a_process_that_crashes_ends_the_tests_with_the_name_of_its_own(tmp_path: Path) -> None:
    """And not never: the tests of other files, of which there are more than processes, are not yet over then."""
    passing = "import os, time\n\n" + "".join(f"def test_{number}():\n    time.sleep(0.5)\n\n" for number in range(3))
    for number in range(7):
        (tmp_path / f"test_{number}.py").write_text(passing)
    (tmp_path / "test_0.py").write_text(f"{passing}def test_crash():\n    os._exit(1)\n\n\ndef test_after(): pass\n")
    told = subprocess.run(["make", "-n", "-f", MAKEFILE, "test"], capture_output=True, text=True, check=True).stdout
    (options,) = re.findall(r"-m pytest (.*) -m ", told)
    command = [sys.executable, "-m", "pytest", *shlex.split(options), "-p", "no:cacheprovider"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE / 2)
    assert ended.returncode == 1
    assert re.search(r"crashed while running 'test_0\.py::test_crash'", ended.stdout)
