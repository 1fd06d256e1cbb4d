"""Depth x filters on CIFAR-10 at equal FLOPs: ASHA against no early stopping, the same twelve trials.

    python -m benchmarks.search FOLDER cifar-10-batches-bin

Trials are compared on images held out of the official training set; the test set is not touched. A call that was cut
off goes on where it was. Prints the record's tables.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.config import Data
from pipeline.search.record import TrialRecord, load_records, ranked, table
from pipeline.sources.cifar10 import RECORD_BYTES

HELD_OUT = 0.005
SPACE = ("model.num_layers=choice(8,6,4,2)", "model.num_filters=choice(48,24,12)")
SCHEDULERS = ("none", "asha")


def main() -> None:
    """Run both searches and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where data, runs and MLflow's file lie")
    parser.add_argument("source", type=Path, help="CIFAR-10's binary layout, unpacked")
    parser.add_argument("--pflop", type=float, default=0.01, help="budget of a trial")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=SCHEDULERS)
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    data = _data_words(words.folder.resolve(), words.source)
    for scheduler in words.schedulers:
        _run(words.folder.resolve(), "search", *data, *_search_words(scheduler, words.pflop))
    found = {scheduler: load_records(f"{words.folder.resolve()}/runs/{scheduler}") for scheduler in words.schedulers}
    for scheduler, records in found.items():
        print(f"\n{scheduler}\n\n{table(records)}")
    if len(found) == len(SCHEDULERS):
        print(f"\n{_comparison(found['none'], found['asha'])}")


def _data_words(folder: Path, source: Path) -> list[str]:
    """The training set's images as an npz, of which `prepare` holds some out; words for all jobs."""
    archive = folder / "cifar10-train.npz"
    if not archive.exists():
        batches = [np.fromfile(source / f"data_batch_{number}.bin", np.uint8) for number in range(1, 6)]
        records = np.concatenate(batches).reshape(-1, RECORD_BYTES)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.savez(archive, images=images, labels=records[:, 0])
    data = Data(name="cifar10-train", url=f"{folder}/data", source=str(archive), source_format="npz", val_split="val")
    fields = data.model_dump(include={"name", "url", "source", "source_format", "val_split"})
    words = ["cifar10-small", *(word for key, value in fields.items() for word in (f"--data.{key}", str(value)))]
    words += ["--data.holdout-fraction", str(HELD_OUT), "--run.url", f"{folder}/runs"]
    _run(folder, "prepare", *words)
    return words


def _search_words(scheduler: str, pflop: float) -> list[str]:
    fields = {
        "cluster.num-workers": 1, "model.head-filters": 48, "train.warmup-steps": 30, "search.name": scheduler,
        "search.scheduler": scheduler, "search.budget": pflop, "search.evaluations": 8, "search.first-rung": 0.125,
    }  # fmt: skip
    return [*(word for key, value in fields.items() for word in (f"--{key}", str(value))), "--search.space", *SPACE]


def _run(folder: Path, job: str, *words: str) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    subprocess.run([sys.executable, "-u", "-m", f"jobs.{job}", *words], check=True, env=environment)


def _comparison(full: list[TrialRecord], stopped: list[TrialRecord]) -> str:
    """What early stopping found, and what it spent, against trials that all ran to their end."""
    best, found = ranked(full)[0], ranked(stopped)[0]
    assert best.last
    assert found.last
    lines = [
        f"best without early stopping: {best.name}, {best.last.bits_per_dim:.4f} bits/dim",
        f"best with ASHA: {found.name}, {found.last.bits_per_dim:.4f} bits/dim",
    ]
    for name, unit in (("images_seen", "images"), ("pflop", "PFLOP")):
        spent = [sum(getattr(record.last, name) for record in records if record.last) for records in (full, stopped)]
        lines.append(f"{unit}: {spent[0]:,.4g} and {spent[1]:,.4g}, {spent[1] / spent[0]:.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
