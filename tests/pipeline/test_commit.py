"""Which commit a run is tagged with, wherever its code came from; a wheel's: tests/infra/test_software.py."""

import json
from pathlib import Path

import pytest

from pipeline import commit
from pipeline.commit import commit_of, git_commit
from pipeline.submitted_job import JOB_VARIABLE
from tests.conftest import git


def test_a_checkout_has_a_commit_only_for_the_files_that_it_tracks(tmp_path: Path) -> None:
    file = tmp_path / "pipeline/commit.py"
    file.parent.mkdir()
    file.write_text("first")
    assert commit_of(file) == ""
    git(tmp_path, "init")
    assert commit_of(file) == "", "a package that is installed in somebody's checkout is not of it"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "first")
    git(tmp_path, "tag", "--annotate", "v1", "--message", "a tag")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(file) == head
    (tmp_path / "notes.txt").write_text("not of the code")
    assert commit_of(file) == head
    file.write_text("second")
    assert commit_of(file) == f"{head}-dirty"


def test_what_a_submitter_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "commit_of", lambda file: "of the checkout")
    assert git_commit() == "of the checkout"
    for metadata, expected in (({"git_commit": "told"}, "told"), ({"job_submission_id": "7"}, "of the checkout")):
        monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": metadata}))
        assert git_commit() == expected


def test_code_that_nothing_tells_of_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "commit_of", lambda file: "")
    assert git_commit() == "unknown"
