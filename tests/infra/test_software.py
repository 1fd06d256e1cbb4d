"""What `infra/software build` makes, as far as all its builds share a folder of sources."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import git
from tests.infra.conftest import INFRA
from tests.infra.test_image import copy_sources


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A checkout, in whose folder setuptools has worked when there was one module more."""
    folder = tmp_path / "sources"
    (folder / "build/lib/jobs").mkdir(parents=True)
    (folder / "build/lib/jobs/deleted.py").touch()
    copy_sources(folder)
    (folder / "infra").mkdir()
    for name in ("software", "cluster.py"):
        (folder / "infra" / name).write_bytes((INFRA / name).read_bytes())
    git(folder, "init")
    git(folder, "add", "models", "pipeline", "jobs", "nodes", "pyproject.toml", "README.md")
    git(folder, "commit", "--message", "what the wheel is made of")
    git(folder, "tag", "of-wheel")
    git(folder, "add", "infra")
    git(folder, "commit", "--message", "what it is not made of")
    return folder


def test_builds_at_once_are_equal_and_hold_nothing_of_an_earlier_one(sources: Path, tmp_path: Path) -> None:
    before = sorted(sources.rglob("*"))
    made = [tmp_path / "first", tmp_path / "second"]
    command = [sys.executable, "-B", sources / "infra/software", "build", "--no-dependencies"]
    builds = [
        subprocess.Popen([*command, "--folder", folder, "--variables", folder.with_suffix(".json")]) for folder in made
    ]
    assert [build.wait() for build in builds] == [0, 0]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in made)
    assert first == second
    (wheel,) = made[0].glob("pixelcnn_ray-*.whl")
    commit = git(sources, "rev-parse", "of-wheel")
    assert f"+g{commit}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "jobs/train.py" in names
    assert "jobs/deleted.py" not in names
    assert sorted(sources.rglob("*")) == before

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "there"]
    subprocess.run([*pip, wheel], check=True)
    asked = "from pipeline.commit import git_commit; print(git_commit())"
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "there")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == commit, "what a run of the wheel is tagged with"


def test_a_wheel_of_changed_sources_says_so(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(sources / "infra")
    ending = runpy.run_path(str(sources / "infra/software"))["commit"]
    commit = git(sources, "rev-parse", "of-wheel")
    assert ending() == f"+g{commit}"
    (sources / "notes.txt").write_text("not of the wheel")
    assert ending() == f"+g{commit}"
    (sources / "pipeline/worker.py").write_text("# changed\n")
    assert ending() == f"+g{commit}.dirty"
    shutil.rmtree(sources / ".git")
    assert ending() == ""
