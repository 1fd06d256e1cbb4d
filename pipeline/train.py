"""The training loop: every worker runs it, counted in steps and images; the same command goes on where it stopped."""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.gated_pixelcnn import GatedPixelCNN
from models.likelihood import nats_of_images
from models.sampling import draw
from pipeline.checkpoint import State, folder_name, newest_sound, require_same_result, write_folder
from pipeline.config import Config
from pipeline.drawing import labels_in_rows
from pipeline.errors import UserError
from pipeline.evaluate import Likelihood, evaluate, sum_over_workers
from pipeline.grid import grid_png
from pipeline.manifest import Manifest, load_manifest
from pipeline.optim import build_averaged, build_optimizer, learning_rate
from pipeline.precision import autocast, compiled, on_device
from pipeline.storage import join
from pipeline.stream import Batch, TrainingStream
from pipeline.tracking import Entry, RunIdentity, SystemMetrics, Tracker
from pipeline.worker import Worker

MOST_GRID_ROWS = 10
"""Classes in the sample grids of training."""


def run_url_of(config: Config) -> str:
    """Folder of the run's checkpoints."""
    return join(config.run.url, config.run.name)


def train(config: Config, worker: Worker, identity: RunIdentity) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one, and give the last validation metrics.

    Raises:
        UserError: the loss is not finite, the data is not what its manifest says, or the configuration differs from
            the checkpoint's.
    """
    torch.manual_seed(config.train.seed)
    manifest, val_manifest = (
        load_manifest(config, split) for split in (config.data.train_split, config.data.val_split)
    )
    learner = Learner(config, worker, manifest)
    undelivered = learner.restore()
    with _tracker(worker, identity, undelivered) as tracker, learner.stream() as stream:
        progress = Progress(config, worker, learner)
        likelihood = None
        while True:
            last = learner.step == config.train.steps
            if learner.at(config.run.log_interval) and progress.steps:
                _log(progress, stream, tracker)
            if learner.at(config.run.eval_interval):
                learner.require_finite()
                likelihood = evaluate(config, val_manifest, learner.averaged_model, worker, config.evaluate.batch_size)
                _tell(config, worker, learner.step, likelihood, tracker)
            if learner.at(config.run.sample_interval) and tracker:
                tracker.image(learner.step, "samples", _sample_grid(config, learner))
            if learner.at(config.run.checkpoint_interval) and learner.step > learner.saved_step:
                learner.save(likelihood, tracker)
            if last:
                break
            progress.add(*learner.advance(next(stream)))
    assert likelihood is not None
    return likelihood.metrics("val") | {"step": float(learner.step), "images_seen": float(learner.images_seen)}


class Learner:
    """Model, optimiser, averaged weights and where the run stands."""

    def __init__(self, config: Config, worker: Worker, manifest: Manifest) -> None:
        self.config, self.worker, self.manifest = config, worker, manifest
        self.model: GatedPixelCNN = on_device(config.build_model(), worker.device)
        self.optimizer = build_optimizer(self.model, config.train)
        self.averaged = build_averaged(self.model, config.train)
        self.step = self.images_seen = self.saved_step = 0
        self.gradient_norm = torch.zeros((), device=worker.device)
        self._bad_step = torch.zeros((), dtype=torch.int64, device=worker.device)
        self._forward: nn.Module = self.model

    @property
    def averaged_model(self) -> GatedPixelCNN:
        """The model with the averaged weights."""
        return cast(GatedPixelCNN, self.averaged.module)

    def restore(self) -> list[Entry]:
        """Go to the newest sound checkpoint, if any, and give the tracking entries that it holds."""
        entries: list[Entry] = []
        with newest_sound(run_url_of(self.config)) as checkpoint:
            if checkpoint:
                require_same_result(checkpoint, self.config, self.manifest.digest)
                self.model.load_state_dict(checkpoint.weights(averaged=False))
                self.averaged.module.load_state_dict(checkpoint.weights(averaged=True))
                self.averaged.n_averaged.fill_(checkpoint.state.averaged_updates)
                self.optimizer.load_state_dict(checkpoint.optimizer())
                self.step, self.images_seen = checkpoint.state.step, checkpoint.state.images_seen
                self.saved_step, entries = self.step, checkpoint.state.undelivered
                if self.worker.rank == 0:
                    print(f"going on from {checkpoint.url}", flush=True)
        self._forward = compiled(self.config, self.model, self.worker.device)
        if self.worker.world_size > 1:
            self._forward = DistributedDataParallel(self._forward)
        return entries

    def stream(self) -> TrainingStream:
        """The images from where the run stands."""
        return TrainingStream(
            self.config,
            self.manifest,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            images_seen=self.images_seen,
        )

    def at(self, interval: int) -> bool:
        """Whether something that is done every `interval` steps, and at the end, is due."""
        return self.step == self.config.train.steps or (self.step > 0 and self.step % interval == 0)

    def advance(self, batch: Batch) -> tuple[Tensor, int]:
        """One optimiser step; gives the sum of nats over this worker's images, and how many they are."""
        self.step += 1
        self.images_seen += self.config.train.batch_size
        torch.manual_seed(_step_seed(self.config.train.seed, self.step, self.worker.rank))
        images = batch.images.to(self.worker.device, memory_format=torch.channels_last, non_blocking=True)
        labels = batch.labels.to(self.worker.device, non_blocking=True) if self.config.model.conditional else None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, self.step)
        with autocast(self.config, self.worker.device):
            logits = self._forward(images, labels)
        nats = nats_of_images(logits, images).sum()
        self.optimizer.zero_grad(set_to_none=True)
        (nats / (len(images) * self.config.dims)).backward()
        self.gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.gradient_clip)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        bad = ~(nats.isfinite() & self.gradient_norm.isfinite()) & (self._bad_step == 0)
        self._bad_step = torch.where(bad, self.step, self._bad_step)
        return nats.detach(), len(images)

    def require_finite(self) -> None:
        """Raise UserError on every worker if any step since the start had a loss or gradient that is not finite."""
        first = self._bad_step.clone()
        if self.worker.world_size > 1:
            none = torch.iinfo(torch.int64).max
            first = torch.where(first == 0, none, first)
            torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
            first = torch.where(first == none, 0, first)
        if first.item():
            raise UserError(
                f"step {int(first.item())}: the loss or its gradient is not finite; lower train.learning_rate "
                f"({self.config.train.learning_rate}) or train.gradient_clip ({self.config.train.gradient_clip})"
            )

    def save(self, likelihood: Likelihood | None, tracker: Tracker | None) -> None:
        """Keep a checkpoint of finite weights; every rank takes part, rank 0 writes."""
        self.require_finite()
        metrics = likelihood.metrics("val") if likelihood else {}
        metrics |= {"step": float(self.step), "images_seen": float(self.images_seen)}
        name = folder_name(self.step)
        with tempfile.TemporaryDirectory(prefix="pixelcnn-checkpoint-") as temporary:
            folder = Path(temporary)
            if self.worker.rank == 0:
                write_folder(folder, self._state(tracker), self.model, self.averaged.module, self.optimizer)
            self.worker.report(metrics, folder if self.worker.rank == 0 else None, name)
        self.saved_step = self.step
        if tracker:
            tracker.tags({"checkpoint": join(run_url_of(self.config), name)})

    def _state(self, tracker: Tracker | None) -> State:
        return State(
            step=self.step,
            images_seen=self.images_seen,
            random_seed=self.config.train.seed,
            averaged_updates=int(self.averaged.n_averaged),
            config=json.loads(self.config.model_dump_json()),
            manifest_digest=self.manifest.digest,
            undelivered=tracker.undelivered() if tracker else [],
        )


@dataclass
class Progress:
    """What was trained since the last line of progress."""

    config: Config
    worker: Worker
    learner: Learner
    steps: int = 0
    images: int = 0
    nats: Tensor | None = None
    started: float = field(default_factory=time.perf_counter)
    waited_before: float = 0.0

    def add(self, nats: Tensor, images: int) -> None:
        """Count one step of this worker."""
        self.nats = nats if self.nats is None else self.nats + nats
        self.images += images
        self.steps += 1

    def take(self, stream: TrainingStream) -> tuple[Likelihood, dict[str, float], float]:
        """Likelihood and speed over all workers since the last call, and the seconds left; then start anew."""
        assert self.nats is not None
        self.learner.require_finite()
        waited = stream.seconds_waited - self.waited_before
        nats, images, all_waited = sum_over_workers(self.worker, self.nats.item(), float(self.images), waited)
        seconds = time.perf_counter() - self.started
        likelihood = Likelihood(nats, int(images), self.config.dims)
        speed = {
            "train/images_per_second": images / seconds,
            "train/data_wait_fraction": all_waited / self.worker.world_size / seconds,
        }
        left = (self.config.train.steps - self.learner.step) * seconds / self.steps
        self.steps, self.images, self.nats, self.started = 0, 0, None, time.perf_counter()
        self.waited_before = stream.seconds_waited
        return likelihood, speed, left


def _log(progress: Progress, stream: TrainingStream, tracker: "RankZeroTracker | None") -> None:
    """One line of progress on rank 0, and its metrics."""
    learner, config = progress.learner, progress.config
    likelihood, speed, left = progress.take(stream)
    if not tracker:
        return
    values = likelihood.metrics("train") | speed
    values |= {
        "train/learning_rate": learning_rate(config.train, learner.step),
        "train/gradient_norm": float(learner.gradient_norm),
        "train/epoch": learner.images_seen / learner.manifest.num_images,
        "images_seen": float(learner.images_seen),
    }
    del values["train/images"]
    tracker.metrics(learner.step, values | tracker.system.read())
    print(
        f"step {learner.step:,}/{config.train.steps:,}  images {learner.images_seen:,}  "
        f"bits/dim {likelihood.bits_per_dim:.4f}  {speed['train/images_per_second']:,.0f} images/s  "
        f"data wait {speed['train/data_wait_fraction']:.1%}  time left {_clock(left)}",
        flush=True,
    )


def _tell(config: Config, worker: Worker, step: int, likelihood: Likelihood, tracker: "RankZeroTracker | None") -> None:
    if tracker:
        tracker.metrics(step, likelihood.metrics("val"))
        print(
            f"step {step:,}  {config.data.val_split}: {likelihood.bits_per_dim:.4f} bits/dim, "
            f"{likelihood.nats_per_image:.3f} nats an image, over {likelihood.images:,} images",
            flush=True,
        )


def _sample_grid(config: Config, learner: Learner) -> bytes:
    """A grid from the averaged weights, the same random numbers every time; with labels a row is a class."""
    columns, size = config.sample.grid_columns, config.data.image_size
    rows = min(config.data.num_classes, MOST_GRID_ROWS) if config.model.conditional else columns
    labels = labels_in_rows(config, rows * columns)
    with autocast(config, learner.worker.device):
        samples = draw(
            learner.averaged_model,
            height=size,
            width=size,
            temperature=config.sample.temperature,
            labels=None if labels is None else labels.to(learner.worker.device),
            seeds=range(config.sample.seed, config.sample.seed + rows * columns),
        )
    return grid_png(samples.images, config.data.levels, columns)


class RankZeroTracker(Tracker):
    """The tracker of the training loop, with the machine's own metrics."""

    def __init__(self, identity: RunIdentity, undelivered: list[Entry]) -> None:
        super().__init__(identity, undelivered)
        self.system = SystemMetrics()


@contextmanager
def _tracker(worker: Worker, identity: RunIdentity, undelivered: list[Entry]) -> Iterator[RankZeroTracker | None]:
    """Rank 0's tracker; the run is FINISHED if the loop ends by itself, else its end is the driver's to tell."""
    if worker.rank != 0:
        yield None
        return
    tracker = RankZeroTracker(identity, undelivered)
    try:
        yield tracker
    except BaseException:
        tracker.close(None)
        raise
    tracker.close("FINISHED")


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for dropout that is a pure function of the run's seed, the step and the rank."""
    return (seed * 1_000_003 + step) * 4096 + rank


def _clock(seconds: float) -> str:
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
