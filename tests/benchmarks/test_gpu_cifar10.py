"""The training in pieces and the figures of a step, as they run on a GPU machine: here on the CPU, at small size."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_cifar10, gpu_convolutions, gpu_sampling, gpu_train
from benchmarks.gpu_cifar10 import Piece, arguments, resolved, run
from benchmarks.gpu_train import QUICK, best_of, different_variants
from models.gated_pixelcnn import GatedLayer
from models.trainable import TrainableModel
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.presets import PRESETS
from pipeline.train import train
from tests.conftest import LocalWorker
from tests.pipeline.test_train import assert_same, changed, final_weights, identity_of

TINY = """
    model.num_layers=2 model.num_filters=8 model.kernel_size=3 model.head_filters=16 model.condition_dropout=0.2
    train.steps=12 train.batch_size=32 train.warmup_steps=2 train.horizontal_flips=true run.log_interval=2
    data.shuffle_shards=3 data.records_per_shard=150 evaluate.batch_size=60 sample.count=4 sample.grid_columns=2
"""
LIGHT = """
import runpy, sys
for name in ("ray", "mlflow", "boto3", "botocore", "webdataset", "tyro", "pyarrow", "sklearn", "optuna"):
    sys.modules[name] = None
for words in [words.split() for words in sys.argv[1:]]:
    sys.argv = words
    runpy.run_module(f"benchmarks.{words[0]}", run_name="__main__")
"""


def tiny_call(data: str | Path, out: Path) -> list[str]:
    """The words of a call of seconds."""
    return [*TINY.split(), "--preset", "digits", "--device", "cpu", "--data", str(data), "--out", str(out)]


def test_pieces_end_with_the_weights_of_one_run_and_their_evaluations(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as on a machine without it
    out = tmp_path / "out"
    words = arguments([*tiny_call(digits.data.url, out), "--points", "2", "--train-images", "150"])
    turns = iter([False] * 5 + [True] * 10)
    with monkeypatch.context() as first_call:
        first_call.setattr(Piece, "is_over", lambda piece: next(turns))
        assert not run(words)
    assert run(words)
    config = Config.model_validate_json((out / "config.json").read_text())
    undisturbed = changed(config, run={"name": "undisturbed"})
    metrics = train(undisturbed, LocalWorker(""), identity_of(undisturbed))
    assert_same(final_weights(config), final_weights(undisturbed))

    rows = json.loads((out / "curve.json").read_text())
    trained = [row["images_seen"] for row in rows if "train/bits_per_dim" in row]
    assert trained == [64, 128, 192, 256, 320, 384]
    assert all(0.0 <= row["train/data_wait_fraction"] <= 1.0 for row in rows if "train/bits_per_dim" in row)
    seconds = [row["seconds"] for row in rows if row["kind"] == "train"]
    assert seconds == sorted(seconds)
    evaluated = {
        (row["step"], row["weights"], row["split"], row["labels"]): row for row in rows if row["kind"] == "evaluation"
    }
    assert len(evaluated) == 2 * 2 * 2 * 2
    last = evaluated[12, "averaged", "test", True]
    assert last["bits_per_dim"] == metrics["val/bits_per_dim"]
    assert last["bits_per_dim"] != evaluated[12, "averaged", "test", False]["bits_per_dim"]
    assert last["bits_per_dim"] != evaluated[12, "raw", "test", True]["bits_per_dim"]
    assert last["images"] == load_manifest(config, "val").num_images == 179
    assert evaluated[6, "raw", "train", True]["images"] == 150
    for name in ("curve.png", "report.md", "samples/samples.png"):
        assert (out / name).stat().st_size > 200


def test_a_grid_that_a_kill_cut_short_is_drawn_to_its_end(digits: Config, tmp_path: Path) -> None:
    words = arguments([*tiny_call(digits.data.url, tmp_path), "--points", "1", "--train-images", "150"])
    assert run(words)
    drawn = (tmp_path / "samples/samples.png").read_bytes()
    for name in ("manifest.json", "samples.png"):
        (tmp_path / "samples" / name).unlink()
    assert run(words)
    assert (tmp_path / "samples/samples.png").read_bytes() == drawn


def test_a_budget_sets_the_steps_once(digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cifar10, "SECONDS_OF_RATE", 0.2)
    called = [word for word in tiny_call(digits.data.url, tmp_path) if word != "train.steps=12"]
    words, cpu = arguments([*called, "--budget-minutes", "5"]), torch.device("cpu")
    config = resolved(words, cpu)
    assert config.train.steps > 12
    assert config.run.checkpoint_interval == config.train.steps // 10
    monkeypatch.setattr(gpu_cifar10, "images_per_second", lambda config, device: math.inf)
    assert resolved(words, cpu) == config


@pytest.mark.parametrize(
    ("more", "different"),
    [
        ("model.num_filters=16", "model.num_filters (was 8, now 16)"),
        ("train.steps=13", "train.steps (was 12, now 13)"),
        ("--points 3", "run.checkpoint_interval (was 1, now 4)"),
        ("run.name=other", "run.name (was 'digits', now 'other')"),
    ],
)
def test_words_of_another_run_are_refused(more: str, different: str, digits: Config, tmp_path: Path) -> None:
    called, cpu = tiny_call(digits.data.url, tmp_path), torch.device("cpu")
    resolved(arguments(called), cpu)
    kept = (tmp_path / "config.json").read_bytes()
    with pytest.raises(
        UserError, match=re.escape(f"--out {tmp_path}: its run was begun with other words: {different};")
    ):
        resolved(arguments([*called, *more.split()]), cpu)
    assert (tmp_path / "config.json").read_bytes() == kept


def test_what_changes_no_result_is_taken_from_each_call(digits: Config, tmp_path: Path) -> None:
    """After shards have moved, or the run to a machine without a GPU, the same command goes on."""
    cpu, file = torch.device("cpu"), tmp_path / "config.json"
    first = resolved(arguments(tiny_call(digits.data.url, tmp_path)), cpu)
    file.write_text(changed(first, cluster={"use_gpu": True}).model_dump_json())
    moved = tmp_path / "moved"
    moved.symlink_to(digits.data.url)
    second = resolved(arguments([*tiny_call(moved, tmp_path), "run.checkpoint_minutes=0.5"]), cpu)
    assert second == changed(first, data={"url": str(moved)}, run={"checkpoint_minutes": 0.5})
    assert Config.model_validate_json(file.read_text()) == second


def test_variants_that_are_the_same_for_a_preset_are_measured_once() -> None:
    assert different_variants(PRESETS["cifar10"].config, QUICK) == [
        "default",
        "compiled",
        "eager",
        "contiguous",
        "plain-adamw",
        "without-muon",
        "eager-contiguous-plain",
    ]
    imagenet = PRESETS["imagenet32"].config
    assert different_variants(imagenet, ["compiled", "default", "reduce-overhead"]) == ["compiled", "reduce-overhead"]
    assert different_variants(imagenet, ["without-muon"]) == ["default"]


def test_the_best_variant_is_the_first_of_those_that_are_as_fast() -> None:
    assert best_of({"eager": 50.0, "default": 99.0, "contiguous": 100.0, "without-muon": 200.0}) == "default"
    assert best_of({"eager": 50.0, "default": 97.0, "contiguous": 100.0}) == "contiguous"
    assert best_of({"without-muon": 1.0}) == "without-muon"
    assert best_of({"default": 0.0, "eager": 0.0}) == "default"


def test_the_hosts_part_of_a_step_leaves_out_what_the_device_still_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(gpu_train.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(gpu_train, "synchronize", lambda device: takes(0.030))
    assert gpu_train.host_milliseconds(lambda: takes(0.002), torch.device("cpu")) == pytest.approx(2.0)


def test_a_batch_that_does_not_fit_is_a_row_and_the_next_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PRESETS["digits"].config
    model, cpu = config.build_model(), torch.device("cpu")

    def takes_half_a_second_or_no_memory(config: Config, model: TrainableModel, device: torch.device) -> float:
        if config.train.batch_size > 2:
            raise torch.OutOfMemoryError
        return 0.5

    told = [
        gpu_sampling.row(takes_half_a_second_or_no_memory, changed(config, train={"batch_size": size}), model, cpu, 1.0)
        for size in (4, 2)
    ]
    assert told[0] == "out of memory | | |"
    assert told[1].startswith("0.500 | 4.00 | ")


def test_a_layer_alone_has_the_kernels_of_the_models_layer() -> None:
    words = gpu_convolutions.arguments(["--device", "cpu", "--batch", "2", "--size", "4", "--kernel", "5"])
    model = GatedLayer(12, 12, 5, channels=3, condition_filters=0, dropout=0.0, first=False, last=False)
    kernels = {
        "vertical 3x5": model.vertical.conv.weight,
        "horizontal 1x3": model.horizontal.kernel_and_bias()[0],
        "link 1x1": model.link.weight,
        "output 1x1": model.output.kernel_and_bias()[0],
    }
    alone = gpu_convolutions.layer(12, words)
    assert {name: flops for name, (flops, _) in alone.items()} == {
        name: 2 * kernel.numel() * 2 * 4 * 4 for name, kernel in kernels.items()
    }
    for name, (_, (forward, of_inputs, of_weights)) in alone.items():
        outputs, inputs = kernels[name].shape[:2]
        assert forward().numel() == outputs * 2 * 4 * 4
        padded = {"vertical 3x5": (4 + 2) * 4, "horizontal 1x3": 4 * (4 + 2)}.get(name, 4 * 4)
        assert of_inputs().numel() == inputs * 2 * padded
        assert of_weights().numel() == kernels[name].numel()


def test_all_run_with_torch_and_a_few_light_packages(digits: Config, tmp_path: Path) -> None:
    """What a GPU machine without network may lack is kept from being imported."""
    figures = f"gpu_train digits train.ema_decay=0.9 --small --device cpu --data digits={digits.data.url} --at 4"
    figures += f" --batches 2 4 --variants eager eager-contiguous-plain --seconds 0.1 --out {tmp_path}/figures"
    pieces = f"gpu_cifar10 {TINY} --preset digits --device cpu --data {digits.data.url} --points 1 --train-images 1"
    pieces += f" --out {tmp_path}/out"
    rates = "gpu_sampling digits --device cpu --batch 2 3 --size 4"
    widths = "gpu_convolutions --device cpu --batch 1 --size 4 --filters 6 12"
    command = [sys.executable, "-c", LIGHT, figures, pieces, rates, widths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures/train.json").read_text())
    assert {key for key in rows if "error" not in rows[key]} == {
        "device",
        "digits/4/eager",
        "digits/4/eager-contiguous-plain",
        *[key for key in rows if key.startswith("digits/2/")],
        *[key for key in rows if key.endswith("/profile")],
        "digits/4/stream",
    }
    assert "With train.ema_decay=0.9:\n\n| preset" in done.stdout
    assert "| digits | 4 | eager |" in done.stdout
    eager, contiguous = (rows[f"digits/4/{name}"]["loss"] for name in ("eager", "eager-contiguous-plain"))
    assert contiguous == pytest.approx(eager, rel=1e-4)
    assert eager < 0.9 * math.log(digits.data.levels)
    assert f"host {rows['digits/4/stream']['host_milliseconds']:,.1f} ms a step" in done.stdout
    for count, what in itertools.product((2, 3), ("drawn", "evaluated")):
        assert re.search(rf"\| digits \| {count} \| {what} \| [\d.]+ \| [\d,.]+ \| [\d.]+ \| [\d.]+% \|", done.stdout)
    assert re.search(r"\| 12 \| all: [\d,.]+ TFLOP/s, [\d.]+% of the peak \|", done.stdout)
    kept = json.loads((tmp_path / "out/runs/digits/undelivered-tracking.json").read_text())
    assert {"metrics", "image", "status"} <= {entry["kind"] for entry in kept}
