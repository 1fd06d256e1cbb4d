"""The measure: the sum of the losses over every image of a split, exactly once, over all workers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from models.likelihood import bits_per_dim
from models.trainable import DensityModel, Measure, TrainableModel
from pipeline.breakdown import Breakdown
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.precision import autocast
from pipeline.stream import Batch, evaluation_batches
from pipeline.worker import Worker


def units(measure: Measure, dims: int) -> int:
    """By how many the loss of an image is divided: sub-pixels, or 1 for what is counted by image."""
    return 1 if measure == "triplet_loss" else dims


@dataclass(frozen=True)
class Measured:
    """The sum of a model's losses over `images` images of `dims` sub-pixels."""

    measure: Measure
    total: float
    images: int
    dims: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """The metrics' names and values, e.g. {"val/bits_per_dim": 2.1}; the first is the one to compare by."""
        if self.measure == "nats":  # bits a sub-pixel for colour images, nats an image for binarised MNIST
            values = {
                "bits_per_dim": bits_per_dim(self.total, self.images, self.dims),
                "nats": self.total / self.images,
            }
        else:
            mean = self.total / (self.images * units(self.measure, self.dims))
            values = {"mean_squared_error" if self.measure == "squared_error" else "triplet_loss": mean}
        return {f"{prefix}/{name}": value for name, value in (values | {"images": float(self.images)}).items()}

    @property
    def text(self) -> str:
        """What a person reads, e.g. "2.1000 bits/dim, 93.1600 nats an image"."""
        return in_words(self.metrics("measured"))


WORDS = {
    "bits_per_dim": "bits/dim",
    "nats": "nats an image",
    "mean_squared_error": "mean squared error",
    "triplet_loss": "triplet loss",
}


def in_words(metrics: Mapping[str, Any], decimals: int = 4) -> str:
    """The measures among the metrics as a person reads them."""
    told = {name.rsplit("/", 1)[-1]: value for name, value in metrics.items()}
    return ", ".join(f"{told[name]:.{decimals}f} {words}" for name, words in WORDS.items() if name in told)


def sum_over_workers(worker: Worker, *values: float) -> list[float]:
    """The sums of the values over all workers, in float64."""
    totals = torch.tensor(values, dtype=torch.float64, device=worker.device)
    if worker.world_size > 1:
        torch.distributed.all_reduce(totals)
    return totals.tolist()


def outputs_of(
    config: Config, model: TrainableModel, batch: Batch, device: torch.device, *, with_labels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What the model gives for a batch, told its labels if it reads any; with images and labels on the device."""
    images, labels = batch.images.to(device, memory_format=torch.channels_last), batch.labels.to(device)
    with autocast(config, device):
        outputs = model(images, labels) if model.reads_labels and with_labels else model(images)
    return outputs, images, labels


@torch.no_grad()
def evaluate(
    config: Config,
    manifest: Manifest,
    model: TrainableModel,
    worker: Worker,
    batch_size: int,
    parts: Breakdown | None = None,
) -> Measured:
    """The model's losses over a split, the same whatever the number of workers.

    Args:
        config: where the split lies, how it is read and what the model is given.
        manifest: the split.
        model: its weights are what is measured.
        worker: evaluates its share of the batches.
        batch_size: images of a forward pass.
        parts: where they are given, a density model's nats are counted in them, of all workers on each.

    Raises:
        UserError: the sum is not finite, or a shard is not what the manifest says.
    """
    was_training = model.training
    model.eval()
    losses, images = torch.zeros((), dtype=torch.float64, device=worker.device), 0
    for batch in evaluation_batches(config, manifest, batch_size, rank=worker.rank, world_size=worker.world_size):
        outputs, pixels, labels = outputs_of(
            config, model, batch, worker.device, with_labels=config.evaluate.conditional
        )
        losses += _losses(model, outputs, pixels, labels, parts).sum()
        images += len(pixels)
    model.train(was_training)
    total, total_images = sum_over_workers(worker, losses.item(), float(images))
    if int(total_images) != manifest.num_images:
        raise UserError(
            f"{config.data.url}: {int(total_images)} images were evaluated, the manifest says {manifest.num_images}"
        )
    if not torch.tensor(total).isfinite():
        raise UserError(
            f"evaluation of {manifest.split}: the sum of {model.measure} is not finite ({total}); "
            "lower train.learning_rate"
        )
    if parts:
        parts.add_workers(worker)
    return Measured(model.measure, total, manifest.num_images, config.dims)


def _losses(model: TrainableModel, outputs: Tensor, images: Tensor, labels: Tensor, parts: Breakdown | None) -> Tensor:
    """The loss of each image, to the same bits whether its parts are counted or not."""
    if parts and isinstance(model, DensityModel):
        return parts.add(model.nats(outputs, images), labels)
    return model.losses(outputs, images, labels)
