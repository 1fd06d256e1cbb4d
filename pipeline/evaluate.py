"""The measure: the sum of nats over every image of a split, exactly once, over all workers."""

from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn

from models.likelihood import bits_per_dim, nats_of_images
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.precision import autocast
from pipeline.stream import evaluation_batches
from pipeline.worker import Worker


@dataclass(frozen=True)
class Likelihood:
    """The sum of nats over `images` images of `dims` sub-pixels."""

    nats: float
    images: int
    dims: int

    @property
    def bits_per_dim(self) -> float:
        """Bits a sub-pixel, as papers quote it for colour images."""
        return bits_per_dim(self.nats, self.images, self.dims)

    @property
    def nats_per_image(self) -> float:
        """Nats an image, as papers quote it for MNIST."""
        return self.nats / self.images

    def metrics(self, prefix: str) -> dict[str, float]:
        """The metrics' names and values, e.g. {"val/bits_per_dim": 2.1}."""
        return {
            f"{prefix}/bits_per_dim": self.bits_per_dim,
            f"{prefix}/nats": self.nats_per_image,
            f"{prefix}/images": float(self.images),
        }


def sum_over_workers(worker: Worker, *values: float) -> list[float]:
    """The sums of the values over all workers, in float64."""
    totals = torch.tensor(values, dtype=torch.float64, device=worker.device)
    if worker.world_size > 1:
        torch.distributed.all_reduce(totals)
    return totals.tolist()


@torch.no_grad()
def evaluate(config: Config, manifest: Manifest, model: nn.Module, worker: Worker, batch_size: int) -> Likelihood:
    """The model's likelihood of a split, the same whatever the number of workers.

    Raises:
        UserError: an image's likelihood is not finite, or a shard is not what the manifest says.
    """
    was_training = model.training
    model.eval()
    nats, images = torch.zeros((), dtype=torch.float64, device=worker.device), 0
    for batch in evaluation_batches(config, manifest, batch_size, rank=worker.rank, world_size=worker.world_size):
        pixels = batch.images.to(worker.device, memory_format=torch.channels_last)
        labels = batch.labels.to(worker.device) if config.model.conditional else None
        with autocast(config, worker.device):
            logits = model(pixels, labels)
        nats += nats_of_images(logits, pixels).sum()
        images += len(pixels)
    model.train(was_training)
    total_nats, total_images = sum_over_workers(worker, nats.item(), float(images))
    if int(total_images) != manifest.num_images:
        raise UserError(
            f"{config.data.url}: {int(total_images)} images were evaluated, the manifest says {manifest.num_images}"
        )
    likelihood = Likelihood(total_nats, manifest.num_images, config.dims)
    if not torch.tensor(total_nats).isfinite():
        raise UserError(
            f"evaluation of {manifest.split}: the likelihood is not finite ({total_nats}); lower train.learning_rate"
        )
    return likelihood
