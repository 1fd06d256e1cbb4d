"""A likelihood in parts: nats by colour, by class and by position, and how much images differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from models.likelihood import bits_per_dim, sum_by_image
from pipeline.manifest import Manifest
from pipeline.worker import Worker

COLOURS = {1: ("grey",), 3: ("red", "green", "blue")}
NORMAL_95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""


@dataclass(frozen=True)
class Part:
    """The likelihood of some of the sub-pixels or images; no bits/dim where there is no image."""

    name: str
    images: int
    nats: float
    bits_per_dim: float | None


@dataclass
class Breakdown:
    """Sums in float64 over the images that were counted; by colour, by class and by position the nats add up to all."""

    nats_by_colour: Float64[Tensor, " c"]
    nats_by_class: Float64[Tensor, " num_classes"]
    images_by_class: Float64[Tensor, " num_classes"]
    nats_by_position: Float64[Tensor, "h w"]
    """Over the colours."""
    squares: Float64[Tensor, ""]
    """Of the nats of each image."""

    @staticmethod
    def empty(manifest: Manifest, device: torch.device) -> "Breakdown":
        """No image of the split yet."""
        channels, height, width = manifest.shape
        shapes = ((channels,), (len(manifest.classes),), (len(manifest.classes),), (height, width), ())
        return Breakdown(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, nats: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Count a batch by the nats of its sub-pixels, and give those of its images."""
        of_images, wide = sum_by_image(nats), nats.double()
        self.nats_by_colour += wide.sum((0, 2, 3))
        self.nats_by_class.index_add_(0, labels, of_images)
        self.images_by_class.index_add_(0, labels, torch.ones_like(of_images))
        self.nats_by_position += wide.sum((0, 1))
        self.squares += of_images.square().sum()
        return of_images

    def add_workers(self, worker: Worker) -> None:
        """Add up what all workers counted, on each of them, in one reduction."""
        if worker.world_size > 1:
            parts = list(vars(self).values())
            flat = torch.cat([part.flatten() for part in parts])
            torch.distributed.all_reduce(flat)
            for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                part.copy_(total.view_as(part))

    def cpu(self) -> "Breakdown":
        """The same sums where every process can read them."""
        return Breakdown(**{name: part.cpu() for name, part in vars(self).items()})

    @property
    def images(self) -> int:
        """Images that were counted."""
        return int(self.images_by_class.sum())

    @property
    def dims(self) -> int:
        """Sub-pixels of an image."""
        return len(self.nats_by_colour) * self.nats_by_position.numel()

    def colours(self) -> list[Part]:
        """Red, green and blue, or grey; bits of that colour's sub-pixels."""
        images, positions = self.images, self.nats_by_position.numel()
        named = zip(COLOURS[len(self.nats_by_colour)], self.nats_by_colour.tolist(), strict=True)
        return [Part(name, images, nats, bits_per_dim(nats, images, positions)) for name, nats in named]

    def classes(self, names: Sequence[str]) -> list[Part]:
        """The classes in the order of their labels."""
        counted = zip(names, self.images_by_class.tolist(), self.nats_by_class.tolist(), strict=True)
        return [
            Part(name, int(images), nats, bits_per_dim(nats, int(images), self.dims) if images else None)
            for name, images, nats in counted
        ]

    def positions(self) -> Float64[np.ndarray, "h w"]:
        """Bits/dim of each position, the mean over its colours."""
        subpixels = self.images * len(self.nats_by_colour)
        return self.nats_by_position.numpy() / (math.log(2.0) * subpixels)

    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the mean bits/dim over images, by the normal approximation; None for one."""
        images = self.images
        if images < 2:
            return None
        mean = self.nats_by_class.sum().item() / images
        variance = max(0.0, self.squares.item() - images * mean**2) / (images - 1)
        half = NORMAL_95 * math.sqrt(variance / images)
        return bits_per_dim(mean - half, 1, self.dims), bits_per_dim(mean + half, 1, self.dims)
