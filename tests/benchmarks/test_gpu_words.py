"""The words of the GPU scripts: what documents tell is understood, and what can't be meant is refused in one line."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_train
from benchmarks.lone_worker import changed_presets
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.presets import PRESETS
from tests.benchmarks.script import what_ends

UNKNOWN_PRESET = r"unknown preset 'cifar': did you mean cifar10\? choose one of digits, "
NO_GPU = r"--device cuda: torch \S+ sees no GPU on this machine; give --device cpu "
CPU = ["--device", "cpu"]


def told_commands() -> set[str]:
    """What `make gpu-figures` runs and docs/gpu.md and the record name, from the script's name on."""
    root = Path(__file__).parents[2]
    told = "\n".join((root / name).read_text() for name in ("Makefile", "docs/gpu.md", "benchmarks/gpu.md"))
    return set(re.findall(r"-m benchmarks\.(gpu_\w+[^`\n]*)", told.replace("\\\n", " ")))


@pytest.mark.parametrize("command", sorted(told_commands()))
def test_commands_of_makefile_and_documents_are_understood(command: str) -> None:
    script, *given = command.split()
    words = vars(importlib.import_module(f"benchmarks.{script}").arguments(given))
    understood = [word for name in ("words", "presets", "changes") for word in words.get(name, [])]
    told = [word for word in given if word in PRESETS or re.match(r"\w+\.\w+=", word)]
    assert understood == told or not told
    assert changed_presets(understood, ["cifar10"])[1]


@pytest.mark.parametrize(
    ("kept", "words", "refused"),
    [
        (
            {"changes": ["train.seed=1"]},
            [],
            "has rows of train.seed=1, on CPU by torch T, not of unchanged presets, on ",
        ),
        ({}, ["train.seed=1"], "has rows of unchanged presets, on CPU by torch T, not of train.seed=1, on "),
        (
            {"name": "NVIDIA H100"},
            [],
            "unchanged presets, on NVIDIA H100 by torch T, not of unchanged presets, on CPU ",
        ),
        (
            {"torch": "2.0.0"},
            [],
            "unchanged presets, on CPU by torch 2.0.0, not of unchanged presets, on CPU by torch T;",
        ),
        (
            {},
            ["--small"],
            "has rows of unchanged presets, on CPU by torch T, not of unchanged presets, --small, on CPU ",
        ),
    ],
)
def test_rows_of_other_models_and_devices_are_kept_apart(
    kept: dict[str, object], words: list[str], refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = {"changes": [], "small": False, "name": "CPU", "torch": torch.__version__} | kept
    rows = json.dumps({"device": device, "digits/4/eager": {"images_per_second": 1.0}})
    (tmp_path / "train.json").write_text(rows)
    monkeypatch.setattr(sys, "argv", ["gpu_train", "digits", *words, *CPU, "--out", str(tmp_path)])
    with pytest.raises(UserError, match=re.escape(refused.replace("torch T", f"torch {torch.__version__}"))):
        gpu_train.main()
    assert (tmp_path / "train.json").read_text() == rows


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gpu_train", "cifar", *CPU], UNKNOWN_PRESET),
        (["gpu_sampling", "cifar", *CPU], UNKNOWN_PRESET),
        (["gpu_cifar10", "--preset", "cifar", *CPU], UNKNOWN_PRESET),
        (["gpu_train", "digits", "model.kernel=3", *CPU], r"model\.kernel '3'"),
        (["gpu_cifar10", "model.kernel=3", *CPU], r"model\.kernel '3'"),
        (["gpu_cifar10", "foo", *CPU], "foo: give SECTION.KEY=VALUE, like train.steps=100; sections are model, data, "),
        (["gpu_cifar10", "trian.steps=3", *CPU], r"trian\.steps=3: give SECTION\.KEY=VALUE, "),
        (["gpu_cifar10", "train=3", *CPU], r"train=3: give SECTION\.KEY=VALUE, "),
        (["gpu_train", "digits", "preset=x", *CPU], r"preset=x: give SECTION\.KEY=VALUE, "),
        (
            ["gpu_cifar10", "run.eval_interval=5", *CPU],
            r"run\.eval_interval: this script sets it itself \(--points\); ",
        ),
        (
            ["gpu_cifar10", "train.steps=9", "--budget-minutes", "1", *CPU],
            r"train\.steps: this script sets it itself \(--budget-minutes\); leave it out",
        ),
        (["gpu_train", "digits"], NO_GPU),
        (["gpu_sampling", "digits"], NO_GPU),
        (["gpu_cifar10"], NO_GPU),
        (["gpu_convolutions"], NO_GPU),
        (["gpu_convolutions", "--kernel", "4", *CPU], "--kernel 4: models have kernels of odd size; give 5"),
        (["gpu_cifar10", "--data", "nowhere", *CPU], r"\S+/nowhere/train/manifest\.json: no manifest; run "),
        (
            ["gpu_train", "digits", "--data", "digits", *CPU],
            "--data digits: give PRESET=FOLDER, the preset one of digits",
        ),
        (
            ["gpu_train", "digits", "--data", "cifar10=data/cifar10", *CPU],
            "--data cifar10=data/cifar10: give PRESET=FOLD",
        ),
        (["gpu_train", "digits", "--data", "digits=nowhere", *CPU], r"nowhere/train/manifest\.json: no manifest; run "),
    ],
)
def test_what_is_mistyped_is_told_in_one_line_and_leaves_nothing(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.search(rf"^error: {told}[^\n]*$", what_ends(words, monkeypatch))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gpu_cifar10", "--minutes", "0"], "argument --minutes: '0' is not a number above 0\n"),
        (["gpu_cifar10", "--budget-minutes", "-5"], "argument --budget-minutes: '-5' is not a number above 0\n"),
        (["gpu_train", "--minutes", "-1"], "argument --minutes: '-1' is not a number above 0\n"),
        (["gpu_sampling", "--size", "0"], "argument --size: '0' is not a whole number of 1 or more\n"),
    ],
)
def test_times_and_sizes_of_nothing_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{words[0]}").arguments(words[1:])
    assert capsys.readouterr().err.endswith(told)


def test_shards_are_of_the_preset_that_is_named(digits: Config) -> None:
    folder = digits.data.url
    assert gpu_train.folders_of_shards([f"digits={folder}"], [PRESETS["digits"].config]) == {"digits": folder}
