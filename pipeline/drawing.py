"""Images drawn by all workers: each its batches, which outlive a kill, then a grid, the arrays and a manifest."""

import io
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.distributed
from jaxtyping import Float64

from models.sampling import Known, Samples, draw
from models.trainable import TrainableModel
from pipeline.clock import clock
from pipeline.config import Config, flatten
from pipeline.errors import UserError
from pipeline.evaluate import Measured
from pipeline.grid import grid_png
from pipeline.manifest import Manifest
from pipeline.precision import autocast
from pipeline.sample_files import (
    Part,
    SampleManifest,
    finish,
    finished,
    parts_done,
    read_parts,
    request_digest,
    write_part,
)
from pipeline.sample_plan import Plan, make_plan
from pipeline.storage import MissingObjectError, join
from pipeline.worker import Worker

ValueT = TypeVar("ValueT")
MOST_GRID_ROWS = 10
"""Classes or originals in the sample grids of training."""
MOST_DRAWN_ROWS = 100
"""Rows of the grid of drawn images; the others are in the arrays and in files of their own."""
SECONDS_BETWEEN_LINES = 10.0


def request_of(config: Config, weights: str) -> dict[str, str]:
    """What the images depend on, or their batches do: the weights' sha256 and the fields of sample."""
    fields = {key: str(value) for key, value in flatten(config).items() if key.startswith("sample.")}
    fields |= {"weights": weights, "precision": config.run.precision}
    return {key: value for key, value in fields.items() if key != "sample.url"}


def samples_url(config: Config, run_url: str, checkpoint: str, weights: str) -> str:
    """sample.url, or a folder of the run that the checkpoint and the request name."""
    named = f"{checkpoint}-{request_digest(request_of(config, weights))}"
    return config.sample.url or join(run_url, "samples", named)


def draw_and_write(
    config: Config, model: TrainableModel, manifest: Manifest, worker: Worker, url: str, weights: str
) -> SampleManifest | None:
    """Draw sample.count images, each worker its batches of those that are missing, and write all below the URL.

    Gives None on every rank but 0. The images don't depend on the number of workers: each has a seed of its own.

    Args:
        weights: sha256 of the model's weights.

    Raises:
        UserError: the model draws nothing, what is asked of it doesn't fit (see `make_plan`), or the URL holds images
            of another request.
    """
    plan = make_plan(config, model, manifest, worker, config.sample.count)
    if plan is None:
        raise UserError(f"model.kind {config.model.kind} draws no images: sample from a run of another kind")
    request = request_of(config, weights)
    done = finished(url, request) if worker.rank == 0 else None
    starts = range(0, len(plan.seeds), config.sample.batch_size)
    missing = sorted(set(starts) - parts_done(url)) if worker.rank == 0 and not done else []
    missing, is_done = _shared(worker, (missing, done is not None))
    if is_done:
        return done
    own = missing[worker.rank :: worker.world_size]
    told = _Progress(worker, len(own), config)
    for start in own:
        chosen = range(start, min(start + config.sample.batch_size, len(plan.seeds)))
        samples = _draw_batch(config, plan, worker, chosen, told.row)
        part = Part(start, samples.images.numpy(), samples.nats.numpy())
        write_part(url, part, config.data.levels, config.sample.png_files)
        told.batch()
    _together(worker)
    if worker.rank > 0:
        return None
    try:
        parts = read_parts(url, starts)
    except MissingObjectError:  # removed by another process, e.g. a killed job's workers, that drew all of the same
        done = finished(url, request)
        if done is None:
            raise
        return done
    return _assemble(config, plan, url, request, parts)


def _assemble(config: Config, plan: Plan, url: str, request: dict[str, str], parts: list[Part]) -> SampleManifest:
    size = config.data.image_size
    shape = (config.data.channels, size, size)
    images = np.concatenate([np.empty((0, *shape), np.uint8), *(part.images for part in parts)])
    nats = np.concatenate([np.empty(0), *(part.nats for part in parts)])
    shown, columns = plan.rows(torch.from_numpy(images))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, nats=nats, allow_pickle=False, **plan.arrays)
    likelihood = _likelihood(config, plan, nats)
    manifest = SampleManifest(
        count=len(images),
        shape=shape,
        levels=config.data.levels,
        first_seed=config.sample.seed,
        sum_of_nats=float(nats.sum()),
        likelihood=likelihood.text if likelihood else "",
        files={},
        request=request,
    )
    grid = grid_png(shown[: columns * MOST_DRAWN_ROWS], config.data.levels, columns)
    return finish(url, manifest, {"samples.npz": buffer.getvalue(), "samples.png": grid})


def training_grid(
    config: Config, manifest: Manifest, model: TrainableModel, worker: Worker
) -> tuple[bytes, Measured | None] | None:
    """A grid from the weights as they are, the same random numbers every time, and what the drawn images cost.

    None for what draws no images, no cost for what knows none.
    """
    columns = config.sample.grid_columns
    rows = min(config.data.num_classes, MOST_GRID_ROWS) if model.reads_labels else min(columns, MOST_GRID_ROWS)
    plan = make_plan(config, model.eval(), manifest, worker, rows * columns)
    if plan is None:
        return None
    samples = _draw_batch(config, plan, worker, range(len(plan.seeds)))
    images, columns = plan.rows(samples.images)
    return grid_png(images, config.data.levels, columns), _likelihood(config, plan, samples.nats.numpy())


def _likelihood(config: Config, plan: Plan, nats: Float64[np.ndarray, " n"]) -> Measured | None:
    """What the drawn sub-pixels cost, None where nothing was drawn."""
    if not len(nats):
        return None
    return Measured("nats", float(nats.sum()), len(nats), plan.drawn_dims(config.dims, config.data.channels))


def _draw_batch(
    config: Config, plan: Plan, worker: Worker, chosen: range, after_row: Callable[[int], None] | None = None
) -> Samples:
    size, channels = config.data.image_size, config.data.channels
    if plan.density is None or not chosen:
        return Samples(torch.empty(0, channels, size, size, dtype=torch.uint8), torch.empty(0, dtype=torch.float64))
    rows = slice(chosen.start, chosen.stop)
    with autocast(config, worker.device):
        samples = draw(
            plan.density,
            height=size,
            width=size,
            seeds=plan.seeds[rows],
            condition=None if plan.condition is None else plan.condition[rows],
            temperature=config.sample.temperature,
            known=None if plan.known is None else Known(plan.known.images[rows], plan.known.mask[rows]),
            after_row=after_row,
        )
    return Samples(samples.images.cpu(), samples.nats.cpu())


class _Progress:
    """Rank 0 tells how far it is, now and then; the others are about as far."""

    def __init__(self, worker: Worker, batches: int, config: Config) -> None:
        self._speaks, self._batches, self._height = worker.rank == 0, batches, config.data.image_size
        self._workers, self._batch_size = worker.world_size, config.sample.batch_size
        self._done, self._started = 0, time.perf_counter()
        self._told = self._started

    def row(self, row: int) -> None:
        """Count a row of the batch that is being drawn."""
        now = time.perf_counter()
        if not self._speaks or now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        batches = self._done + row / self._height
        left = (self._batches - batches) * (now - self._started) / batches
        speed = batches * self._batch_size * self._workers / (now - self._started)
        print(f"drawn {batches / self._batches:.1%}  {speed:,.1f} images/s  time left {clock(left)}", flush=True)

    def batch(self) -> None:
        """Count a batch."""
        self._done += 1


def _together(worker: Worker) -> None:
    if worker.world_size > 1:
        torch.distributed.barrier()


def _shared(worker: Worker, value: ValueT) -> ValueT:
    """Rank 0's value on every rank."""
    if worker.world_size == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]
