"""PixelCNN on the row being drawn."""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from models.incremental.strips import MaskedRow, Operation, Pixel, Strip, point_products
from models.pixelcnn import PixelCNN, ResidualBlock


class PixelCNNRow:
    """The convolutions' rows above once a row, everything else a sub-pixel at a time."""

    def __init__(self, body: PixelCNN, like: Float[Tensor, "b c w"]) -> None:
        width, filters, groups = like.shape[2], body.num_features, body.channels
        self._first = MaskedRow(body.first, like, width)
        self.image = self._first.inputs
        self._residuals = Strip(like, width, filters, groups)
        self.features = self._residuals
        self._blocks = [_BlockRow(cast(ResidualBlock, block), like) for block in body.blocks]

    def begin(self, y: int) -> None:
        """Go to row y; the one above is complete."""
        self._first.begin()
        for block in self._blocks:
            block.masked.begin()

    def operations(self, x: int, group: int) -> list[Operation]:
        """What gives the features of a sub-pixel once all before it are in `image`."""
        operations = [self._first.operation(x, group, self._residuals.group(x, group))]
        for block in self._blocks:
            operations += block.operations(x, group, self._residuals.group(x, group))
        return operations


class _BlockRow:
    """One residual block, which adds to the features in place."""

    def __init__(self, block: ResidualBlock, like: Float[Tensor, "b c w"]) -> None:
        groups, wide, narrow = block.reduce.groups, block.reduce.in_filters, block.reduce.out_filters
        self.masked = MaskedRow(block.masked, like, like.shape[2])
        self._wide, self._narrow = Pixel(like, wide, groups), Pixel(like, narrow, groups)
        self._reduce, self._expand = point_products(block.reduce, like), point_products(block.expand, like)

    def operations(self, x: int, group: int, features: Float[Tensor, "b n"]) -> list[Operation]:
        """The block's own part of a sub-pixel's features, added to what came into it."""
        reduced, masked = self.masked.inputs.group(x, group), self._narrow.group(group)
        return [
            partial(torch.clamp_min, features, 0, out=self._wide.group(group)),
            partial(torch.mm, self._wide.upto(group + 1), self._reduce[group], out=reduced),
            partial(reduced.clamp_min_, 0),
            self.masked.operation(x, group, masked),
            partial(masked.clamp_min_, 0),
            partial(features.addmm_, self._narrow.upto(group + 1), self._expand[group]),
        ]
