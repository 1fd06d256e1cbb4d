"""Images drawn by all workers from a checkpoint's averaged weights: a grid PNG and the arrays as .npz."""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from models.sampling import Samples, draw
from models.trainable import TrainableModel
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import Measured
from pipeline.grid import grid_png
from pipeline.manifest import Manifest
from pipeline.precision import autocast
from pipeline.sample_plan import Plan, make_plan
from pipeline.storage import join, write
from pipeline.worker import Worker

MOST_GRID_ROWS = 10
"""Classes or originals in the sample grids of training."""


@dataclass(frozen=True)
class Drawn:
    """Where the pictures lie, how many were drawn, and their likelihood under the model that drew them."""

    grid_url: str
    arrays_url: str
    count: int
    likelihood: str


def draw_and_write(config: Config, model: TrainableModel, manifest: Manifest, worker: Worker, url: str) -> Drawn | None:
    """Draw sample.count images, each worker its share, and write samples.png and samples.npz below the URL.

    Gives None on every rank but 0. The images don't depend on the number of workers: each has a seed of its own.

    Raises:
        UserError: the model draws nothing, or what is asked of it doesn't fit; see `make_plan`.
    """
    plan = make_plan(config, model, manifest, worker, config.sample.count)
    if plan is None:
        raise UserError(f"model.kind {config.model.kind} draws no images: sample from a run of another kind")
    own = range(worker.rank, len(plan.seeds), worker.world_size)
    parts = [
        _draw_batch(config, plan, worker, own[start : start + config.sample.batch_size])
        for start in range(0, len(own), config.sample.batch_size)
    ]
    samples = _gather(config, parts, worker, len(plan.seeds))
    if samples is None:
        return None
    grid_url, arrays_url = join(url, "samples.png"), join(url, "samples.npz")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, images=samples.images.numpy(), nats=samples.nats.numpy(), allow_pickle=False, **plan.arrays
    )
    write(arrays_url, buffer.getvalue())
    write(grid_url, _grid(config, plan, samples.images))
    likelihood = Measured("nats", samples.nats.sum().item(), len(plan.seeds), config.dims).text if plan.seeds else ""
    return Drawn(grid_url, arrays_url, len(plan.seeds), likelihood)


def training_grid(config: Config, manifest: Manifest, model: TrainableModel, worker: Worker) -> bytes | None:
    """A grid from the weights as they are, the same random numbers every time; None for what draws no images."""
    columns = config.sample.grid_columns
    rows = min(config.data.num_classes, MOST_GRID_ROWS) if model.reads_labels else min(columns, MOST_GRID_ROWS)
    plan = make_plan(config, model.eval(), manifest, worker, rows * columns)
    if plan is None:
        return None
    _, images, _ = _draw_batch(config, plan, worker, range(len(plan.seeds)))
    return _grid(config, plan, images)


def _grid(config: Config, plan: Plan, drawn: Tensor) -> bytes:
    images, columns = plan.rows(drawn)
    return grid_png(images, config.data.levels, columns)


def _draw_batch(config: Config, plan: Plan, worker: Worker, indices: range) -> tuple[list[int], Tensor, Tensor]:
    chosen = list(indices)
    if plan.density is None or not chosen:
        return chosen, torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.float64)
    with autocast(config, worker.device):
        samples = draw(
            plan.density,
            height=config.data.image_size,
            width=config.data.image_size,
            seeds=[plan.seeds[index] for index in chosen],
            condition=None if plan.condition is None else plan.condition[chosen],
            temperature=config.sample.temperature,
        )
    return chosen, samples.images.cpu(), samples.nats.cpu()


def _gather(
    config: Config, parts: list[tuple[list[int], Tensor, Tensor]], worker: Worker, count: int
) -> Samples | None:
    """All workers' images in the order of their seeds, on rank 0."""
    everything: list[list[tuple[list[int], Tensor, Tensor]]] = [parts]
    if worker.world_size > 1:
        everything = [[] for _ in range(worker.world_size)]
        torch.distributed.all_gather_object(everything, parts)
    if worker.rank != 0:
        return None
    images = torch.empty(count, config.data.channels, config.data.image_size, config.data.image_size, dtype=torch.uint8)
    nats = torch.empty(count, dtype=torch.float64)
    for indices, drawn, drawn_nats in (part for one in everything for part in one):
        images[indices], nats[indices] = drawn, drawn_nats
    return Samples(images, nats)
