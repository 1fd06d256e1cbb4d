"""Images drawn by all workers from a checkpoint's averaged weights: a grid PNG and the arrays as .npz."""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from models.gated_pixelcnn import GatedPixelCNN
from models.sampling import Samples, draw
from pipeline.config import Config
from pipeline.evaluate import Likelihood
from pipeline.grid import grid_png
from pipeline.precision import autocast
from pipeline.storage import join, write
from pipeline.worker import Worker


@dataclass(frozen=True)
class Drawn:
    """Where the pictures lie, how many they are, and their likelihood under the model that drew them."""

    grid_url: str
    arrays_url: str
    likelihood: Likelihood


def labels_in_rows(config: Config, count: int) -> Tensor | None:
    """A label for each image, a class a row of the grid and again from the first class on; None if unconditional."""
    if not config.model.conditional:
        return None
    return torch.arange(count) // config.sample.grid_columns % config.data.num_classes


def draw_and_write(config: Config, model: GatedPixelCNN, worker: Worker, url: str) -> Drawn | None:
    """Draw sample.count images, each worker its share, and write samples.png and samples.npz below the URL.

    Gives None on every rank but 0. The images don't depend on the number of workers: each has a seed of its own.
    """
    count = config.sample.count
    labels = labels_in_rows(config, count)
    own = range(worker.rank, count, worker.world_size)
    parts = [
        _draw_batch(config, model, worker, own[start : start + config.sample.batch_size], labels)
        for start in range(0, len(own), config.sample.batch_size)
    ]
    samples = _gather(parts, worker, count)
    if samples is None:
        return None
    grid_url, arrays_url = join(url, "samples.png"), join(url, "samples.npz")
    buffer = io.BytesIO()
    named_labels = {} if labels is None else {"labels": labels.numpy()}
    np.savez_compressed(
        buffer, images=samples.images.numpy(), nats=samples.nats.numpy(), allow_pickle=False, **named_labels
    )
    write(arrays_url, buffer.getvalue())
    write(grid_url, grid_png(samples.images, config.data.levels, config.sample.grid_columns))
    return Drawn(grid_url, arrays_url, Likelihood(samples.nats.sum().item(), count, config.dims))


def _draw_batch(
    config: Config, model: GatedPixelCNN, worker: Worker, indices: range, labels: Tensor | None
) -> tuple[list[int], Tensor, Tensor]:
    chosen = list(indices)
    size = config.data.image_size
    with autocast(config, worker.device):
        samples = draw(
            model,
            height=size,
            width=size,
            seeds=[config.sample.seed + index for index in chosen],
            labels=None if labels is None else labels[chosen].to(worker.device),
            temperature=config.sample.temperature,
        )
    return chosen, samples.images.cpu(), samples.nats.cpu()


def _gather(parts: list[tuple[list[int], Tensor, Tensor]], worker: Worker, count: int) -> Samples | None:
    """All workers' images in the order of their seeds, on rank 0."""
    everything: list[list[tuple[list[int], Tensor, Tensor]]] = [parts]
    if worker.world_size > 1:
        everything = [[] for _ in range(worker.world_size)]
        torch.distributed.all_gather_object(everything, parts)
    if worker.rank != 0:
        return None
    flat = [part for one in everything for part in one]
    images = torch.empty((count, *flat[0][1].shape[1:]), dtype=torch.uint8)
    nats = torch.empty(count, dtype=torch.float64)
    for indices, drawn, drawn_nats in flat:
        images[indices], nats[indices] = drawn, drawn_nats
    return Samples(images, nats)
