"""A trial of a search, in a process of its own: a training run whose evaluations are told to Ray Tune."""

import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
import pipeline.ray_cluster  # noqa: F401

# isort: split
from ray import tune
from ray.util.queue import Queue

from pipeline.checkpoint import adopt, folder_name, steps_below
from pipeline.config import Config
from pipeline.cost import training_flops
from pipeline.learner import run_url_of
from pipeline.run_identity import URI_VARIABLE
from pipeline.runs import run_training
from pipeline.search.places import TellPlaces
from pipeline.search.record import ENDED, load_record
from pipeline.search.space import Space, is_population, member_name, rounded, trial_config, trial_name
from pipeline.storage import join

POINTER = "checkpoint-of-run.json"
"""What Tune keeps as a trial's checkpoint: where the run's own checkpoint lies."""
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What trials must know of their search; it travels to them."""

    config: Config
    space: Space
    url: str
    tracking_uri: str
    tags: dict[str, str]
    taken: Queue
    """Where trials tell what places they take."""

    def named(self, trial_id: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """A trial's name and its rounded values; a member of a population keeps its name when they change."""
        taken = rounded(self.space, values)
        return member_name(int(trial_id.rsplit("_", 1)[-1])) if is_population(self.config) else trial_name(taken), taken


def run_trial(values: dict[str, Any], plan: Plan) -> None:
    """Tell again what is kept of the trial, then train on; its process takes no CPU beside its workers'."""
    os.environ[URI_VARIABLE] = plan.tracking_uri
    name, values = plan.named(tune.get_context().get_trial_id(), values)
    config, record = trial_config(plan.config, values, name), load_record(plan.url, name)
    telling = Telling(config, is_population(plan.config))
    reports = [report.model_dump() for report in record.reports] if record else []
    ended = record is not None and record.state in ENDED
    if is_population(plan.config):
        reports = reports[-1:] if ended else []  # what the others did meanwhile would be another story
        _adopt(config)
    for report in reports:
        telling.tell(report)
    if ended:
        return
    callbacks = [TellPlaces(plan.taken)]
    training = _beside(lambda: run_training(config, hear=telling.hear, callbacks=callbacks, tags=plan.tags))
    telling.relay(training)
    telling.tell(telling.report(training.result()))


class Telling:
    """Hands a run's evaluations to Tune, in the thread of the trial's process that Tune knows.

    The last one may end the trial, and so is told only after the run's last checkpoint.
    """

    def __init__(self, config: Config, is_population: bool) -> None:
        self._images = config.train.steps * config.train.batch_size
        self._batch_size, self._run_url = config.train.batch_size, run_url_of(config)
        self._gflop = training_flops(config) / 1e9
        self._is_population = is_population
        self._heard: queue.SimpleQueue[dict[str, float]] = queue.SimpleQueue()

    def hear(self, metrics: dict[str, float]) -> None:
        """Take what the run's rank 0 reports; called in another thread than relay."""
        report = self.report(metrics)
        if report and report["progress"] < 100:
            self._heard.put(report)

    def report(self, metrics: dict[str, float]) -> dict[str, float]:
        """What Tune is told of a run's metrics; nothing where they hold no evaluation."""
        if "val/bits_per_dim" not in metrics:
            return {}
        seen = metrics["images_seen"]
        return {
            "bits_per_dim": metrics["val/bits_per_dim"],
            "images_seen": seen,
            "pflop": seen * self._gflop / 1e6,
            "progress": 100.0 * seen / self._images,
        }

    def relay(self, training: "Future[Any]") -> None:
        """Tell Tune what is heard, until the training has ended."""
        while True:
            over = training.done()
            try:
                report = self._heard.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if over:
                    return
                continue
            if self._is_population:
                self._wait_for_checkpoint(report, training)
            self.tell(report)

    def tell(self, report: dict[str, float]) -> None:
        """Tell Tune, which answers by going on or by ending this process."""
        told = report | {"gflop_per_image": self._gflop}
        if not self._is_population:
            tune.report(told)
            return
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"run_url": self._run_url, "step": self._step(report)}
            Path(folder, POINTER).write_text(json.dumps(pointer))
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))

    def _wait_for_checkpoint(self, report: dict[str, float], training: "Future[Any]") -> None:
        """Another member may go on from the checkpoint of this step, so it must be in storage."""
        wanted = folder_name(self._step(report))
        while not training.done() and not any(name >= wanted for name in steps_below(self._run_url)):
            time.sleep(LOOK_SECONDS)

    def _step(self, report: dict[str, float]) -> int:
        return round(report["images_seen"]) // self._batch_size


def _adopt(config: Config) -> None:
    """Go on from the checkpoint of another member, where Tune says so."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        pointer = json.loads(Path(folder, POINTER).read_text())
    adopt(join(pointer["run_url"], folder_name(pointer["step"])), run_url_of(config), config)


def _beside(function: Callable[[], Any]) -> "Future[Any]":
    """Call the function in a thread that doesn't outlive the process."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="training", daemon=True).start()
    return future
