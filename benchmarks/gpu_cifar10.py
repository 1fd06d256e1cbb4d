"""The cifar10 preset trained on one device in pieces, evaluated along its way, and drawn from: the curve and a grid.

    python -m benchmarks.gpu_cifar10 [--data data/cifar10] [--out gpu-cifar10] [--minutes 9] [KEY=VALUE ...]

It is `pipeline.train.train` on the real stream, with its checkpoints, in this process and without Ray. After
`--minutes`, or on SIGTERM, it keeps a checkpoint and ends; the same command goes on, first with the training, then with
what is missing of the evaluations: averaged and raw weights of every `--points`th part of the run, the last one first,
on the whole test split and the first `--train-images` of the training split, with labels and without where the model
serves for both. Once it is trained there are OUT/curve.json, curve.png, report.md and a grid in OUT/samples. Words like
model.conditional=true change the preset, and those that would train another run than OUT has are refused;
`--budget-minutes` sets train.steps to what fits into so many minutes of training at the rate that is measured at the
start. Without MLflow on the machine, what it would have been told is kept in the run's folder.
"""

import argparse
import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.cifar10_report import draw_curve, key_of, report
from benchmarks.device import device_of, synchronize
from benchmarks.lone_worker import LoneWorker, changed, pass_first_epoch, with_overrides
from benchmarks.recipe import first_shards
from benchmarks.words import count, positive, run_script
from pipeline.calibration import fit_logit_scale
from pipeline.checkpoint import AVERAGED_NAME, STATE_NAME, WEIGHTS_NAME, State, folder_name, steps_below
from pipeline.commit import git_commit
from pipeline.config import Config, changed_result_keys
from pipeline.drawing import draw_and_write
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.learner import Learner, run_url_of
from pipeline.manifest import load_manifest
from pipeline.precision import on_device
from pipeline.presets import preset_named
from pipeline.run_identity import identify
from pipeline.storage import write
from pipeline.train import train

WARM_UP_STEPS = 10
SECONDS_OF_RATE = 10.0
OWN_KEYS = {
    "run.eval_interval": "--points",
    "run.sample_interval": "--points",
    "run.checkpoint_interval": "--points",
    "cluster.num_workers": "one worker",
    "cluster.use_gpu": "--device",
}
"""What the script sets itself, and by what."""
WEIGHTS = {"averaged": AVERAGED_NAME, "raw": WEIGHTS_NAME}


@dataclass
class Piece:
    """One call: until when it may work, and the rows that it and those before it wrote."""

    out: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)
    terminated: bool = False

    def __post_init__(self) -> None:
        self._file = self.out / "curve.json"
        self.rows: list[dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else []
        self._trained_before = max((row["seconds"] for row in self.rows if row["kind"] == "train"), default=0.0)
        self._training_since = time.monotonic()

    def is_over(self) -> bool:
        """Whether the call's time is over, or SIGTERM came."""
        return self.terminated or time.monotonic() - self.started >= self.seconds

    def begin_training(self, images_seen: int) -> None:
        """Training goes on after so many images: rows of what was lost since are dropped, their time counts."""
        self.rows = [row for row in self.rows if row["kind"] != "train" or row["images_seen"] <= images_seen]
        self._training_since = time.monotonic()

    def tell(self, metrics: dict[str, float]) -> None:
        """A row of training: seconds of all calls in the training loop, its start and compiling included."""
        seconds = self._trained_before + time.monotonic() - self._training_since
        self.add({"kind": "train", "seconds": seconds, **metrics})

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        write(str(self._file), json.dumps(self.rows, indent=0).encode())


def resolved(words: argparse.Namespace, device: torch.device) -> Config:
    """The configuration that the words say, in OUT/config.json, too; what a budget chose stays as it was chosen.

    Raises:
        UserError: there are no such shards, a word sets what the script does, or OUT's run was begun with other words.
    """
    own = OWN_KEYS | ({"train.steps": "--budget-minutes"} if words.budget_minutes else {})
    for key in [word.partition("=")[0] for word in words.changes]:
        if key in own:
            raise UserError(f"{key}: this script sets it itself ({own[key]}); leave it out")
    config = changed(
        preset_named(words.preset).config,
        data={"url": str(words.data.absolute())},
        run={"url": str(words.out.absolute() / "runs"), "checkpoint_minutes": 2.0, "keep_checkpoints": 1000},
        tracking={"patience_seconds": 1.0},
    )
    config = with_overrides(config, words.changes)
    config = changed(config, cluster={"num_workers": 1, "use_gpu": device.type == "cuda"})
    for split in (config.data.train_split, config.data.val_split):
        load_manifest(config, split)
    file = words.out / "config.json"
    before = Config.model_validate_json(file.read_text()) if file.exists() else None
    if words.budget_minutes:
        steps = before.train.steps if before else steps_within(words.budget_minutes, config, device)
        config = changed(config, train={"steps": steps})
    steps = config.train.steps
    whole = {"eval_interval": steps, "sample_interval": steps, "checkpoint_interval": max(1, steps // words.points)}
    config = changed(config, run=whole)
    if before:
        require_same_run(before, config, words.out)
    write(str(file), config.model_dump_json(indent=1).encode())
    return config


def require_same_run(before: Config, now: Config, out: Path) -> None:
    """Raise UserError where a call's words would train another run than the one that OUT has."""
    different = changed_result_keys(before, now, "run.name", "run.checkpoint_interval")
    if different:
        raise UserError(
            f"--out {out}: its run was begun with other words: {', '.join(different)}; give those of then, or another "
            "folder"
        )


def steps_within(minutes: float, config: Config, device: torch.device) -> int:
    """The steps of training that fit into the minutes."""
    rate = images_per_second(config, device)
    steps = round(minutes * 60 * rate / config.train.batch_size)
    print(f"{rate:,.1f} images/s: {steps:,} steps fit into {minutes:g} minutes", flush=True)
    return steps


def images_per_second(config: Config, device: torch.device) -> float:
    """The rate of the training step fed by the real stream; its learner is thrown away."""
    learner = Learner(config, LoneWorker(device), load_manifest(config, config.data.train_split))
    learner.restore()
    with learner.stream() as stream:
        pass_first_epoch(stream)
        for _ in range(WARM_UP_STEPS):
            learner.advance(next(stream))
        synchronize(device)
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS_OF_RATE:
            learner.advance(next(stream))
            steps += 1
        synchronize(device)
    return steps * config.train.batch_size / (time.perf_counter() - started)


def newest_step(config: Config) -> int:
    """The step of the run's newest checkpoint, 0 for none."""
    names = steps_below(run_url_of(config))
    return int(names[0].removeprefix("step-")) if names else 0


def train_piece(config: Config, piece: Piece, device: torch.device) -> None:
    """Train to the end of the run, or until the piece is over."""
    step = newest_step(config)
    piece.begin_training(step * config.train.batch_size)
    worker = LoneWorker(device, stops=piece.is_over, tell=piece.tell)
    manifest = load_manifest(config, config.data.train_split)
    train(config, worker, identify(config, manifest, run_url_of(config), git_commit()))


def evaluate_piece(config: Config, piece: Piece, device: torch.device, train_images: int) -> bool:
    """Evaluate what is missing until the piece is over; gives whether nothing is missing any more."""
    splits = {"test": load_manifest(config, config.data.val_split)}
    splits["train"] = first_shards(load_manifest(config, config.data.train_split), train_images)
    both = bool(getattr(config.model, "condition_dropout", 0.0))
    labels = [True, False] if both else [True]
    interval, worker = config.run.checkpoint_interval, LoneWorker(device)
    regular = list(range(interval, config.train.steps, interval))
    done = {key_of(row) for row in piece.rows if row["kind"] == "evaluation"}
    model = on_device(config.build_model(), device)
    for step in [config.train.steps, *reversed(regular)]:
        folder = Path(run_url_of(config), folder_name(step))
        state = State.model_validate_json((folder / STATE_NAME).read_text())
        for weights, file in WEIGHTS.items():
            wanted = [(split, with_labels) for split in splits for with_labels in labels]
            wanted = [one for one in wanted if (step, weights, *one) not in done]
            if wanted:
                model.load_state_dict(load_file(folder / file))
                if weights == "averaged":  # between, checkpoints have them as averaged
                    fit_logit_scale(config, splits["train"], model, worker)
            for split, with_labels in wanted:
                if piece.is_over():
                    return False
                one = changed(config, evaluate={"conditional": with_labels})
                started = time.perf_counter()
                measured = evaluate(one, splits[split], model, worker, config.evaluate.batch_size)
                row = {"kind": "evaluation", "step": step, "weights": weights, "split": split, "labels": with_labels}
                row |= {"images_seen": state.images_seen, "images": measured.images}
                row |= {"bits_per_dim": measured.metrics("at")["at/bits_per_dim"]}
                piece.add(row | {"seconds": time.perf_counter() - started})
                print(row, flush=True)
    return True


def draw_grid(config: Config, out: Path, device: torch.device) -> None:
    """OUT/samples: images of the averaged weights of the last step, those that are missing."""
    folder = Path(run_url_of(config), folder_name(config.train.steps))
    model = on_device(config.build_model(), device).eval()
    model.load_state_dict(load_file(folder / AVERAGED_NAME))
    state = State.model_validate_json((folder / STATE_NAME).read_text())
    manifest = load_manifest(config, config.data.val_split)
    draw_and_write(config, model, manifest, LoneWorker(device), str(out / "samples"), state.files[AVERAGED_NAME])


def run(words: argparse.Namespace) -> bool:
    """One call; gives whether all is done."""
    device = device_of(words.device)
    piece = Piece(words.out, 60 * words.minutes)
    before = signal.signal(signal.SIGTERM, lambda number, frame: setattr(piece, "terminated", True))
    try:
        config = resolved(words, device)
        if newest_step(config) < config.train.steps:
            train_piece(config, piece, device)
        if newest_step(config) < config.train.steps:
            return False
        is_done = evaluate_piece(config, piece, device, words.train_images)
        draw_grid(config, words.out, device)
        draw_curve(config, piece.rows, words.out / "curve.png")
        write(str(words.out / "report.md"), (report(config, piece.rows, device) + "\n").encode())
        return is_done
    finally:
        signal.signal(signal.SIGTERM, before)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="what jobs.prepare wrote")
    parser.add_argument("--out", type=Path, default=Path("gpu-cifar10"))
    parser.add_argument("--minutes", type=positive, default=9.0, help="of this call")
    parser.add_argument("--budget-minutes", type=positive, help="of training in all, in place of the preset's steps")
    parser.add_argument("--points", type=count, default=10, help="places of the run whose checkpoints are evaluated")
    parser.add_argument("--train-images", type=count, default=10_000)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    return parser.parse_intermixed_args(words)


def main() -> None:
    """One call, and what to do next."""
    words = arguments()
    if run(words):
        print((words.out / "report.md").read_text())
    else:
        print("not done yet: run the same command again", flush=True)


if __name__ == "__main__":
    run_script(main)
