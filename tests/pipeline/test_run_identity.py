from pathlib import Path

import pytest

from pipeline.run_identity import default_tracking_uri


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///runs.db", "sqlite:///{here}/runs.db"),
        ("sqlite:///sub/runs.db?timeout=30", "sqlite:///{here}/sub/runs.db?timeout=30"),
        ("sqlite:////data/runs.db", "sqlite:////data/runs.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("postgresql://user@host/runs", "postgresql://user@host/runs"),
    ],
)
def test_a_sqlite_file_lies_where_the_job_was_started(
    given: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert default_tracking_uri() == taken.format(here=tmp_path)
