"""What `infra/software build` makes, as far as all its builds share a folder of sources."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA
from tests.infra.test_image import copy_sources


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of sources, where setuptools has worked when there was one module more."""
    folder = tmp_path / "sources"
    (folder / "build/lib/jobs").mkdir(parents=True)
    (folder / "build/lib/jobs/deleted.py").touch()
    copy_sources(folder)
    (folder / "infra").mkdir()
    for name in ("software", "cluster.py"):
        (folder / "infra" / name).write_bytes((INFRA / name).read_bytes())
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
    names = zipfile.ZipFile(wheel).namelist()
    assert "jobs/train.py" in names
    assert "jobs/deleted.py" not in names
    assert sorted(sources.rglob("*")) == before


@pytest.mark.parametrize("changed", [False, True])
def test_the_wheel_knows_the_commit_that_last_changed_it(changed: bool, sources: Path, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        named = ["git", "-C", str(sources), "-c", "user.name=Test", "-c", "user.email=test@example.org", *words]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("add", "models", "pipeline", "jobs", "nodes", "pyproject.toml", "README.md")
    git("commit", "--message", "sources")
    commit = git("rev-parse", "HEAD")
    git("add", "infra")
    git("commit", "--message", "what is not of the wheel")
    if changed:
        (sources / "pipeline/worker.py").write_text("# changed\n")
    folder, installed = tmp_path / "software", tmp_path / "installed"
    command = [sys.executable, "-B", sources / "infra/software", "build", "--no-dependencies", "--folder", folder]
    subprocess.run([*command, "--variables", tmp_path / "variables.json"], check=True)
    (wheel,) = folder.glob("pixelcnn_ray-*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", installed, wheel]
    subprocess.run(pip, check=True)
    asked = "from pipeline.commit import git_commit; print(git_commit())"
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == commit + ("-dirty" if changed else "")
