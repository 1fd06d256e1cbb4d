"""Depth x filters on CIFAR-10 at equal FLOPs: ASHA against no early stopping, the same twelve trials.

    python -m benchmarks.search FOLDER cifar-10-batches-bin

Trials are compared on images held out of the official training set; the test set is not touched. A call that was cut
off goes on where it was. Prints the record's tables, and what Ray's ASHA would have done with the curves of the trials
that were not stopped, had they begun in other orders.
"""

import argparse
import io
import os
import random
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler

from benchmarks.lone_worker import changed
from benchmarks.words import positive, run_program, run_script
from pipeline.config import Data
from pipeline.presets import PRESETS
from pipeline.search.record import TrialRecord, load_records, ranked, table
from pipeline.sources.opening import open_source
from pipeline.storage import write

HELD_OUT = 0.005
SPACE = ("model.num_filters=choice(12,24,48)", "model.num_layers=choice(2,4,6,8)")
EVALUATIONS = {"none": 8, "asha": 16}
SCHEDULERS = tuple(EVALUATIONS)
ORDERS = 100
WITHIN = 0.01
"""Bits/dim by which what is found may be worse than the best and count as found."""


def main() -> None:
    """Run both searches and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where data, runs and MLflow's file lie")
    parser.add_argument("source", type=Path, help="CIFAR-10's binary layout, unpacked")
    parser.add_argument("--pflop", type=positive, default=0.01, help="budget of a trial")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=SCHEDULERS)
    words = parser.parse_args()
    data = _data_words(words.folder.resolve(), words.source)
    for scheduler in words.schedulers:
        _run(words.folder.resolve(), "search", *data, *_search_words(scheduler, words.pflop))
    found = {scheduler: load_records(f"{words.folder.resolve()}/runs/{scheduler}") for scheduler in words.schedulers}
    for scheduler, records in found.items():
        print(f"\n{scheduler}\n\n{table(records)}")
    if len(found) == len(SCHEDULERS):
        print(f"\n{_comparison(found['none'], found['asha'])}")
    if "none" in found:
        print(f"\n{_replays(found['none'])}")


def _data_words(folder: Path, source: Path) -> list[str]:
    """The training set's images as an npz, of which `prepare` holds some out; words for all jobs."""
    archive = folder / "cifar10-train.npz"
    if not archive.exists():
        official = changed(PRESETS["cifar10-small"].config, data={"source": str(source)}).data
        images = open_source(official).splits[official.train_split]
        labels, content = np.array([image.label for image in images], np.uint8), io.BytesIO()
        np.savez(content, images=np.stack([image.load() for image in images]), labels=labels)
        write(str(archive), content.getvalue())
    data = Data(name="cifar10-train", url=f"{folder}/data", source=str(archive), source_format="npz", val_split="val")
    fields = data.model_dump(include={"name", "url", "source", "source_format", "val_split"})
    words = ["cifar10-small", *(word for key, value in fields.items() for word in (f"--data.{key}", str(value)))]
    words += ["--data.holdout-fraction", str(HELD_OUT), "--run.url", f"{folder}/runs"]
    _run(folder, "prepare", *words)
    return words


def _search_words(scheduler: str, pflop: float) -> list[str]:
    fields = {
        "cluster.num-workers": 1, "model.head-filters": 48, "train.warmup-steps": 30, "search.name": scheduler,
        "search.scheduler": scheduler, "search.budget": pflop, "search.evaluations": EVALUATIONS[scheduler],
    }  # fmt: skip
    return [*(word for key, value in fields.items() for word in (f"--{key}", str(value))), "--search.space", *SPACE]


def _run(folder: Path, job: str, *words: str) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    run_program(f"jobs.{job}", [sys.executable, "-u", "-m", f"jobs.{job}", *words], environment)


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


def _replays(full: list[TrialRecord]) -> str:
    """How Ray's ASHA deals with the curves when trials begin in random orders."""
    best = ranked(full)[0].reports[-1].bits_per_dim
    everything = sum(record.reports[-1].images_seen for record in full)
    lines = ["| first rung | reduction factor | images, mean | least | most | found |", "| --- " * 6 + "|"]
    for first in (0.125, 0.25):
        for factor in (2, 3, 4):
            shares, found = [], []
            for seed in range(ORDERS):
                spent, bits = _replay(random.Random(seed).sample(full, len(full)), first, factor)
                shares.append(spent / everything)
                found.append(bits <= best + WITHIN)
            told = f"{mean(shares):.0%} | {min(shares):.0%} | {max(shares):.0%} | {mean(found):.0%}"
            lines.append(f"| {first} | {factor} | {told} |")
    return "\n".join(lines)


def _replay(order: list[TrialRecord], first: float, factor: float) -> tuple[float, float]:
    """Images trained on, and the best bits/dim of a trial that came to its end, two trials at a time."""
    scheduler = ASHAScheduler(
        time_attr="progress", metric="bits_per_dim", mode="min", max_t=100, grace_period=100 * first,
        reduction_factor=factor,
    )  # fmt: skip
    waiting, running, spent, finished = list(order), list[tuple[Any, TrialRecord, int]](), 0.0, [float("inf")]
    while waiting or running:
        while waiting and len(running) < 2:
            record = waiting.pop(0)
            trial = SimpleNamespace(trial_id=record.name)
            scheduler.on_trial_add(None, trial)
            running.append((trial, record, 0))
        trial, record, number = running.pop(0)
        report = record.reports[number]
        decision = scheduler.on_trial_result(None, trial, report.model_dump())
        if report.progress >= 100:
            finished.append(report.bits_per_dim)
        if report.progress >= 100 or decision == ASHAScheduler.STOP:
            spent += report.images_seen
        else:
            running.append((trial, record, number + 1))
    return spent, min(finished)


if __name__ == "__main__":
    run_script(main)
