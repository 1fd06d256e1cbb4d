"""The training loop: every worker runs it, counted in steps and images; the same command goes on where it stopped."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.alerts import Alerts, StallWatch
from pipeline.clock import clock
from pipeline.config import Config
from pipeline.drawing import training_grid
from pipeline.errors import UserError
from pipeline.evaluate import Measured, evaluate, sum_over_workers
from pipeline.keeper import keeping
from pipeline.learner import Learner
from pipeline.manifest import Manifest, load_manifest
from pipeline.mlflow_run import Entry, SystemMetrics
from pipeline.optim import learning_rate
from pipeline.orders import Agreed, OrderBook
from pipeline.run_identity import RunIdentity
from pipeline.storage import reads_resumed
from pipeline.stream import TrainingStream
from pipeline.told import PreemptedError
from pipeline.tracking import Tracker
from pipeline.worker import Worker


def train(config: Config, worker: Worker, identity: RunIdentity) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one, and give the last validation metrics.

    Where the run is told to stop it ends before, with a checkpoint of the step that it gives and no such metrics.

    Raises:
        PreemptedError: a node of the group is being taken away; a checkpoint is kept.
        UserError: the loss is not finite, the data is not what its manifest says, or the configuration differs from
            the checkpoint's.
    """
    torch.manual_seed(config.train.seed)
    manifest, val_manifest = (
        load_manifest(config, split) for split in (config.data.train_split, config.data.val_split)
    )
    learner = Learner(config, worker, manifest)
    undelivered = learner.restore()
    with (
        _tracker(config, worker, identity, undelivered) as tracker,
        keeping(learner, tracker) as keeper,
        learner.stream() as stream,
        _stall_watch(config, tracker) as watch,
    ):
        progress, orders = Progress(config, worker, learner), OrderBook(config, worker)
        while True:
            last, told = learner.step == config.train.steps, orders.turn()
            if learner.at(config.run.log_interval) and progress.steps:
                _log(progress, stream, tracker)
            watch.end()
            measured = _measure(learner, val_manifest, tracker)
            if (learner.at(config.run.checkpoint_interval) or told.saves) and learner.step > learner.saved_step:
                keeper.save(measured)
                orders.saved()
                if not told.ends:
                    worker.report(_reached(learner, measured))
            if learner.at(config.run.sample_interval) and tracker:
                _draw(learner, val_manifest, tracker, measured)
            if last or told.ends:
                break
            watch.begin(learner.step + 1)
            progress.add(*learner.advance(next(stream)))
        keeper.finish()
        if not last:
            _end_early(told, learner, tracker)
    return _reached(learner, measured)


def _measure(learner: Learner, val_manifest: Manifest, tracker: "RankZeroTracker | None") -> Measured | None:
    """The measure on data.val_split, where it is due; the averaged weights are made ready for it or for a grid."""
    config, worker, measured = learner.config, learner.worker, None
    if learner.at(config.run.eval_interval) or learner.at(config.run.sample_interval):
        learner.require_finite()
        learner.fit_averaged()
    if learner.at(config.run.eval_interval):
        measured = evaluate(config, val_manifest, learner.averaged_model, worker, config.evaluate.batch_size)
        _tell(learner, measured, tracker)
    return measured


def _draw(learner: Learner, val_manifest: Manifest, tracker: "RankZeroTracker", measured: Measured | None) -> None:
    """A grid of samples and what they cost, beside the measure of the same weights if there is one."""
    found = training_grid(learner.config, val_manifest, learner.averaged_model, learner.worker)
    if found:
        grid, likelihood = found
        tracker.image(learner.step, "samples", grid)
        if likelihood:
            metrics = likelihood.metrics("drawn")
            tracker.metrics(learner.step, metrics)
            if measured:
                tracker.alerts.drawn(learner.step, metrics | measured.metrics("val"))


def _end_early(told: Agreed, learner: Learner, tracker: "RankZeroTracker | None") -> None:
    """Do what the run is told to, once its checkpoint is kept."""
    if told.leave:
        raise PreemptedError(f"a node is being taken away; the checkpoint of step {learner.step:,} is kept")
    if told.hold:
        learner.worker.hold()
    if tracker:
        tracker.end = "KILLED"
        print(f"stopped after step {learner.step:,}; its checkpoint is kept", flush=True)


def _reached(learner: Learner, measured: Measured | None) -> dict[str, float]:
    """Where the run stands, with the validation metrics of this very step if there are any."""
    metrics = measured.metrics("val") if measured else {}
    return metrics | {"step": float(learner.step), "images_seen": float(learner.images_seen)}


@dataclass
class Progress:
    """What was trained since the last line of progress."""

    config: Config
    worker: Worker
    learner: Learner
    steps: int = 0
    images: int = 0
    losses: Tensor | None = None
    started: float = field(default_factory=time.perf_counter)
    waited_before: float = 0.0

    def add(self, losses: Tensor, images: int) -> None:
        """Count one step of this worker."""
        self.losses = losses if self.losses is None else self.losses + losses
        self.images += images
        self.steps += 1

    def take(self, stream: TrainingStream) -> tuple[Measured, dict[str, float], float]:
        """Losses and speed over all workers since the last call, and the seconds left; then start anew."""
        assert self.losses is not None
        self.learner.require_finite()
        waited = stream.seconds_waited - self.waited_before
        faults = float(reads_resumed()), float(stream.records_skipped)
        losses, images, all_waited, resumed, skipped = sum_over_workers(
            self.worker, self.losses.item(), float(self.images), waited, *faults
        )
        if not images:
            raise UserError(
                f"none of the last {self.steps} batches held an image that could be read; repair the shards below "
                f"data.url {self.config.data.url}"
            )
        seconds = time.perf_counter() - self.started
        measured = Measured(self.learner.model.measure, losses, int(images), self.config.dims)
        speed = {
            "train/images_per_second": images / seconds,
            "train/data_wait_fraction": all_waited / self.worker.world_size / seconds,
            "data/reads_resumed": resumed,
            "data/skipped_records": skipped,
        }
        left = (self.config.train.steps - self.learner.step) * seconds / self.steps
        self.steps, self.images, self.losses, self.started = 0, 0, None, time.perf_counter()
        self.waited_before = stream.seconds_waited
        return measured, speed, left


def _log(progress: Progress, stream: TrainingStream, tracker: "RankZeroTracker | None") -> None:
    """One line of progress on rank 0, and its metrics."""
    learner, config = progress.learner, progress.config
    measured, speed, left = progress.take(stream)
    if not tracker:
        return
    values = measured.metrics("train") | speed
    values |= {
        "train/learning_rate": learning_rate(config.train, learner.step),
        "train/gradient_norm": float(learner.gradient_norm),
        "train/epoch": learner.images_seen / learner.manifest.num_images,
        "images_seen": float(learner.images_seen),
    }
    del values["train/images"]
    tracker.metrics(learner.step, values | tracker.system.read())
    learner.worker.show(config.run.name, values)
    tracker.alerts.look(learner.step, values)
    print(
        f"step {learner.step:,}/{config.train.steps:,}  images {learner.images_seen:,}  "
        f"{measured.text}  {speed['train/images_per_second']:,.0f} images/s  "
        f"data wait {speed['train/data_wait_fraction']:.1%}  time left {clock(left)}",
        flush=True,
    )


def _tell(learner: Learner, measured: Measured, tracker: "RankZeroTracker | None") -> None:
    if tracker:
        # Beside the measure, as MLflow draws one metric over another only at steps that both have.
        tracker.metrics(learner.step, measured.metrics("val") | {"images_seen": float(learner.images_seen)})
        print(
            f"step {learner.step:,}  {learner.config.data.val_split}: {measured.text}, over {measured.images:,} images",
            flush=True,
        )


class RankZeroTracker(Tracker):
    """The tracker of the training loop, with the machine's own metrics."""

    def __init__(self, config: Config, identity: RunIdentity, undelivered: list[Entry]) -> None:
        super().__init__(identity, undelivered)
        self.system = SystemMetrics()
        self.alerts = Alerts(config, self.alert)
        self.end = "FINISHED"
        self.running()

    def alert(self, kind: str, what: str) -> None:
        """A line and a tag for a state that a person should see to."""
        print(f"alert: {kind}: {what}", flush=True)
        self.tags({f"alert.{kind}": what})


def _stall_watch(config: Config, tracker: RankZeroTracker | None) -> contextlib.AbstractContextManager[StallWatch]:
    """Rank 0's watch over the steps; on other ranks one that nobody looks at."""
    if tracker is None:
        return contextlib.nullcontext(StallWatch(config, lambda kind, what: None))
    return StallWatch(config, tracker.alert).watching()


@contextmanager
def _tracker(
    config: Config, worker: Worker, identity: RunIdentity, undelivered: list[Entry]
) -> Iterator[RankZeroTracker | None]:
    """Rank 0's tracker; the run ends as tracker.end if the loop ends by itself, else the driver tells its end."""
    if worker.rank != 0:
        yield None
        return
    tracker = RankZeroTracker(config, identity, undelivered)
    try:
        yield tracker
    except BaseException:
        with contextlib.suppress(
            UserError
        ):  # storage that is away or refuses is the reason, which must be what is told
            tracker.close(None)
        raise
    tracker.close(tracker.end)
