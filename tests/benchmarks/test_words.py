"""The words of the scripts that start jobs or read a person's files: what can't be meant is told and leaves nothing."""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks import curve, digits
from benchmarks.start import look, started
from benchmarks.words import count, positive
from pipeline.errors import UserError
from pipeline.presets import PRESETS
from pipeline.sources.opening import open_source
from tests.benchmarks.script import what_ends

WHEELS = ("pip-26-py3-none-any.whl", "pixelcnn_ray-1-py3-none-any.whl")
TRAINS = 'import time\nprint("step 1/10")\ntime.sleep(600)\n'


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files that aren't what they are given for."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/notes.txt").write_text("none")
    Path("torn").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save("torn/0.jpg")
    Path("torn/0.jpg").write_bytes(Path("torn/0.jpg").read_bytes()[:600])
    np.savez("shirts.npz", images=np.zeros((2, 1, 28, 28), np.uint8), labels=[0, 1])
    np.savez("unlabelled.npz", images=np.zeros((2, 1, 8, 8), np.uint8))
    Path("software").mkdir()
    for name in WHEELS:
        (Path("software") / name).write_bytes(b"no wheel")
    return tmp_path


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "ten", ""])
def test_a_count_is_a_whole_number_of_one_or_more(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text!r} is not a whole number of 1 or more$"):
        count(text)
    assert count("12") == 12


@pytest.mark.parametrize("text", ["0", "-0.5", "inf", "nan", "ten", ""])
def test_a_positive_number_is_finite_and_above_0(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text!r} is not a number above 0$"):
        positive(text)
    assert positive("0.5") == 0.5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["start", "--beside", "nowhere"],
            r"--beside nowhere: no checkout of this project, it has no jobs/train\.py",
        ),
        (["prepare", "nowhere"], r"nowhere: no folder with files \*\.jpg or \*\.jpeg; give one "),
        (["prepare", "texts"], r"texts: no folder with files \*\.jpg or \*\.jpeg; give one "),
        (["prepare", "torn", "--images", "4"], r"torn/0\.jpg: can't be decoded \(.*\); take it out of the folder"),
        (["search", "made", "nowhere"], r"data\.source nowhere: no such file or folder; "),
        (["digits", "nowhere.npz"], r"nowhere\.npz: no digits with labels \(.*No such file.*\); draw some by "),
        (["digits", "texts/notes.txt"], r"texts/notes\.txt: no digits with labels \(File is not a zip file\); "),
        (["digits", "shirts.npz"], r"shirts\.npz: no digits with labels \(cannot reshape .*\); "),
        (["digits", "unlabelled.npz"], r"unlabelled\.npz: no digits with labels \(.*labels is not a file.*\); "),
        (["boot", "--software", "nowhere"], r"--software \S+/nowhere: 0 files pip-\*\.whl, not 1; run "),
        (["boot", "--software", "software", "--python", "python0"], r"--python python0: no such program; "),
    ],
)
def test_what_is_mistyped_is_told_in_one_line_and_leaves_nothing(
    words: list[str], told: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(files.rglob("*"))
    assert re.search(rf"^error: {told}[^\n]*$", what_ends(words, monkeypatch))
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize(
    ("sums", "told"),
    [
        (None, r"\S+/software/SHA256SUMS: no such file; run "),
        ([("0" * 64, WHEELS[0])], rf"\S+/software/{WHEELS[0]}: not what SHA256SUMS says; run "),
        ([("0" * 64, "torch.whl")], r"\S+/software/torch\.whl: no such file, yet SHA256SUMS names it; run "),
        ([], r"`\S+ \S+/software/pip-26-py3-none-any\.whl/pip install .*` ended with status [12]; what it said "),
    ],
)
def test_software_that_is_not_whole_is_told(
    sums: list[tuple[str, str]] | None, told: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sums is not None:
        (files / "software/SHA256SUMS").write_text("".join(f"{sha256}  {name}\n" for sha256, name in sums))
    words = ["boot", "--software", "software", "--python", sys.executable]
    assert re.search(rf"^error: {told}[^\n]*$", what_ends(words, monkeypatch))


def checkout(folder: Path, prepare: str, train: str, search: str = "") -> Path:
    """A checkout whose jobs are those programs."""
    (folder / "jobs").mkdir(parents=True)
    for name, program in (("__init__", ""), ("prepare", prepare), ("train", train), ("search", search)):
        (folder / f"jobs/{name}.py").write_text(program)
    return folder


@pytest.mark.parametrize(
    ("prepare", "train", "told"),
    [
        ('raise SystemExit("error: no room")', TRAINS, "jobs.prepare ended with status 1:\nerror: no room"),
        ("", 'raise SystemExit("error: no room")', "jobs.train ended before its first step:\nerror: no room"),
    ],
)
def test_a_job_that_fails_is_told_with_what_it_said(prepare: str, train: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(f'{tmp_path}/other: {told}')}$"):
        started(checkout(tmp_path / "other", prepare, train), tmp_path, "jobs.train")


def test_a_process_that_is_ending_keeps_its_name() -> None:
    """Linux takes its words before the process is a zombie."""
    ending = mock.Mock(spec=psutil.Process, pid=5)
    ending.children.return_value = []
    ending.cpu_times.side_effect = [mock.Mock(user=1.0, system=0.5), mock.Mock(user=2.0, system=0.5)]
    ending.cmdline.side_effect = [["ray::TrainController.run"], []]
    seen: dict[int, tuple[str, float]] = {}
    look(ending, seen)
    look(ending, seen)
    assert seen == {5: ("ray::TrainController", 2.5)}


@pytest.mark.parametrize("job", ["jobs.train", "jobs.search"])
def test_a_start_is_timed_to_its_line_and_ended_there(job: str, tmp_path: Path) -> None:
    searches = TRAINS.replace("step 1/", "best: ")
    seconds, used = started(checkout(tmp_path / "other", "", TRAINS, searches), tmp_path, job)
    assert 0 < seconds < 600
    assert isinstance(used, Counter)
    assert list(used) == [job]


def test_a_curve_is_of_the_run_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run as jobs.train keeps one: its tag and its configuration."""
    monkeypatch.chdir(tmp_path)
    with mlflow.start_run(run_name="tiny", tags={"run_url": "runs/tiny"}):
        mlflow.log_text("{}", "config.json")
        for step in (50, 100, 150, 200):
            mlflow.log_metric("train/bits_per_dim", 8 - step / 100, step=step)
        mlflow.log_metric("val/bits_per_dim", 6.25, step=150)
    picture = tmp_path / "curve.png"
    monkeypatch.setattr(sys, "argv", ["curve", "tiny", "100", str(picture)])
    curve.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == ["| 100 | 7.0000 |  |", "| 150 | 6.5000 | 6.2500 |", "| 200 | 6.0000 |  |"]
    with Image.open(picture) as image:
        assert image.size == (840, 480)
    assert what_ends(["curve", "other", "100", str(tmp_path / "other.png")], monkeypatch).startswith(
        "error: RUN 'other': no preset, and no run of this id or name "
    )
    assert not (tmp_path / "other.png").exists()


def test_drawn_digits_are_read_by_a_classifier_of_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten real digits as if drawn, one of them under another's label."""
    data = PRESETS["digits"].config.data
    images = open_source(data).splits[data.train_split]
    last = {image.label: image.load() for image in images}
    labels = np.arange(10)
    drawn = np.stack([last[label] for label in labels]).transpose(0, 3, 1, 2)
    labels[3] = 4
    np.savez(tmp_path / "samples.npz", images=drawn, labels=labels)
    monkeypatch.setattr(sys, "argv", ["digits", str(tmp_path / "samples.npz")])
    digits.main()
    told = capsys.readouterr().out.splitlines()
    assert float(told[0].removeprefix("real held-out digits recognised: ").split("%")[0]) > 95
    assert told[1] == "drawn digits recognised as their label: 90.0% of 10"
    assert [line.split(":")[0] for line in told[2:]] == [f"  {label}" for label in (0, 1, 2, 4, 5, 6, 7, 8, 9)]
    assert told[5] == "  4: 50.0%"
