"""What the targets of the Makefile leave alone."""

import subprocess
from pathlib import Path

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
