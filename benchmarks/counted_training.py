"""`jobs.train` that also writes down which images each step was of: `python -m benchmarks.counted_training digits ...`.

Every worker appends, before each step that it takes, the step, the time and the keys of its images to a file of its
own below $IMAGES_FOLDER/RUN; the trained code is the project's own.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from jobs.train import job
from pipeline import runs
from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.launch import RayWorker
from pipeline.learner import Learner
from pipeline.run_identity import RunIdentity
from pipeline.stream import Batch

VARIABLE = "IMAGES_FOLDER"

train_on_worker = runs._train_on_worker


def count_and_train(worker: RayWorker, argument: tuple[Config, RunIdentity]) -> dict[str, Any]:
    """Train as jobs.train does, and write each step's keys before it is taken.

    A group of workers is known by the address and port at which its ranks met.
    """
    group = f"{os.environ['MASTER_ADDR']}-{os.environ['MASTER_PORT']}"
    folder = Path(os.environ[VARIABLE]) / argument[0].run.name
    folder.mkdir(parents=True, exist_ok=True)
    advance = Learner.advance
    with (folder / f"{group} {worker.rank:03d}").open("ab", buffering=0) as file:

        def counted(learner: Learner, batch: Batch) -> tuple[Tensor, int]:
            file.write(f"{learner.step + 1} {time.time_ns()} {' '.join(batch.keys)}\n".encode())
            return advance(learner, batch)

        Learner.advance = counted
        try:
            return train_on_worker(worker, argument)
        finally:
            Learner.advance = advance


def images_by_step(folder: Path) -> dict[int, list[str]]:
    """Keys of the images of each step that the final model was made by, in the ranks' order.

    Of a step that several groups took, the one of the group that began last counts: it went on from a checkpoint
    before, so what the earlier ones made of that step is in no weight.
    """
    taken: dict[int, dict[str, list[str]]] = {}
    begun: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        group = path.name.split(" ")[0]
        for line in path.read_text().splitlines():
            step, when, *keys = line.split(" ")
            begun[group] = min(begun.get(group, int(when)), int(when))
            taken.setdefault(int(step), {}).setdefault(group, []).extend(keys)
    return {step: groups[max(groups, key=begun.__getitem__)] for step, groups in sorted(taken.items())}


def missing_and_double(found: dict[int, list[str]], expected: dict[int, list[str]]) -> tuple[int, int]:
    """How many images of the expected steps are not in the same step here, and how many are here too often."""
    missing = double = 0
    for step in found.keys() | expected.keys():
        here, there = Counter(found.get(step, [])), Counter(expected.get(step, []))
        missing += (there - here).total()
        double += (here - there).total()
    return missing, double


def require_whole_epochs(found: dict[int, list[str]], images: int) -> None:
    """Assert that the steps follow each other, and that every epoch of so many images has each one once."""
    assert list(found) == list(range(1, len(found) + 1)), "steps are missing"
    keys = [key for step in found.values() for key in step]
    for start in range(0, len(keys), images):
        epoch = keys[start : start + images]
        assert len(set(epoch)) == len(epoch), f"images are double in the epoch from image {start:,} on"
    assert len(set(keys)) == min(images, len(keys)), "there are other images than the split's"


if __name__ == "__main__":
    from benchmarks import counted_training  # the module that workers import, rather than this script

    runs._train_on_worker = counted_training.count_and_train
    sys.exit(run_job("benchmarks.counted_training", "Train a model and count its images.", job))
