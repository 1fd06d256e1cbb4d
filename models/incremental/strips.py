"""What incremental drawing is made of: buffers of the row being drawn, and thin products between them.

The features of the pixels of a row lie pixel after pixel, in each pixel group after group. What a colour group reads on
its own row, whole pixels on the left and then the groups before it at the position itself, is so one slice of memory,
and a causal convolution is one product with the rows of its kernel that the group has. Everything is laid out once; an
`Operation` is such a product, or a step between them, on fixed memory.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.causal_conv import CausalConv, GroupedPointwise, HorizontalConv

Operation = Callable[[], object]


class Strip:
    """Features of one row for each image, with `reach` zero pixels on its left."""

    def __init__(self, like: Float[Tensor, "b *any"], width: int, filters: int, groups: int, reach: int = 0) -> None:
        self.width, self.filters, self.group_filters, self.reach = width, filters, filters // groups, reach
        self.values = like.new_zeros(len(like), (reach + width) * filters)

    def window(self, x: int, reach: int, groups: int) -> Float[Tensor, "b n"]:
        """`reach` pixels left of x, and the first `groups` groups of x."""
        start = (self.reach + x - reach) * self.filters
        return self.values[:, start : start + reach * self.filters + groups * self.group_filters]

    def group(self, x: int, group: int) -> Float[Tensor, "b n"]:
        """One group of x."""
        start = (self.reach + x) * self.filters + group * self.group_filters
        return self.values[:, start : start + self.group_filters]

    def pixels(self) -> Float[Tensor, "b w f"]:
        """The whole row, without the zeros."""
        return self.values[:, self.reach * self.filters :].unflatten(1, (self.width, self.filters))

    def maps(self) -> Float[Tensor, "b f 1 w"]:
        """The whole row as maps of one row, channels last."""
        return self.pixels().permute(0, 2, 1).unsqueeze(2)


class Pixel:
    """Features of one position for each image, behind a column of ones that a product's bias goes with."""

    def __init__(self, like: Float[Tensor, "b *any"], filters: int, groups: int) -> None:
        self.group_filters = filters // groups
        self.values = like.new_ones(len(like), 1 + filters)

    def upto(self, groups: int) -> Float[Tensor, "b n"]:
        """The ones and the first groups."""
        return self.values[:, : 1 + groups * self.group_filters]

    def group(self, group: int) -> Float[Tensor, "b n"]:
        """One group."""
        start = 1 + group * self.group_filters
        return self.values[:, start : start + self.group_filters]


class RowsAbove:
    """The last rows of some maps, channels last; zeros above the image."""

    def __init__(self, like: Float[Tensor, "b *any"], rows: int, width: int, filters: int) -> None:
        self.values = like.new_zeros(len(like), rows, width, filters)

    def append(self, row: Float[Tensor, "b f 1 w"]) -> Float[Tensor, "b f rows w"]:
        """All rows after the newest came and the oldest went."""
        self.values = torch.cat([self.values[:, 1:], row.permute(0, 2, 3, 1)], dim=1)
        return self.values.permute(0, 3, 1, 2)


def rows_of_group(outputs: int, groups: int, parts: int, group: int) -> Int[Tensor, " n"]:
    """Output channels of a colour group, part after part, in a convolution whose outputs are ordered by parts."""
    return torch.arange(outputs).view(parts, groups, -1)[:, group].flatten()


def by_group(outputs: int, groups: int, parts: int) -> Int[Tensor, " outputs"]:
    """The order in which each group's outputs stand together."""
    return torch.cat([rows_of_group(outputs, groups, parts, group) for group in range(groups)])


def row_products(convolution: HorizontalConv | CausalConv, like: Float[Tensor, "b *any"]) -> list[Float[Tensor, "k n"]]:
    """For each colour group, the matrix from what it reads on its own row (`Strip.window`) to its outputs."""
    kernel = convolution.kernel_and_bias()[0].to(like.dtype)
    current, reach = convolution.current, convolution.reach
    products = []
    for group in range(current.groups):
        rows = rows_of_group(current.out_filters, current.groups, current.parts, group).to(kernel.device)
        own = kernel[rows, :, -1]
        left = own[:, :, :reach].permute(2, 1, 0).flatten(0, 1)
        products.append(torch.cat([left, own[:, : seen(current, group), reach].T]))
    return products


def point_products(
    pointwise: GroupedPointwise, like: Float[Tensor, "b *any"], bias: bool = True
) -> list[Float[Tensor, "k n"]]:
    """For each colour group, the matrix from the groups that it sees (`Pixel.upto`) to its outputs; bias first."""
    kernel, biases = (one.to(like.dtype) for one in pointwise.kernel_and_bias())
    products = []
    for group in range(pointwise.groups):
        rows = rows_of_group(pointwise.out_filters, pointwise.groups, pointwise.parts, group).to(kernel.device)
        visible = kernel[rows, : seen(pointwise, group), 0, 0].T
        products.append(torch.cat([biases[None, rows], visible]) if bias else visible.contiguous())
    return products


def seen(pointwise: GroupedPointwise, group: int) -> int:
    """Input filters that a group sees at its own position."""
    return groups_seen(pointwise, group) * pointwise.in_filters // pointwise.groups


def groups_seen(pointwise: GroupedPointwise, group: int) -> int:
    """Groups that a group sees at its own position."""
    return group + len(pointwise.blocks) - pointwise.groups + 1


class MaskedRow:
    """A `CausalConv` on the row being drawn: the rows above once a row, the row itself a colour group at a time."""

    def __init__(self, convolution: CausalConv, like: Float[Tensor, "b *any"], width: int) -> None:
        groups, reach = convolution.current.groups, convolution.reach
        kernel, bias = (one.to(like.dtype) for one in convolution.kernel_and_bias())
        self.inputs = Strip(like, width, convolution.current.in_filters, groups, reach)
        self.base = Strip(like, width, convolution.current.out_filters, groups)
        self._reach, self._current, self._bias = reach, convolution.current, bias
        self._above, self._products = kernel[:, :, :-1], row_products(convolution, like)
        self._rows = RowsAbove(like, reach, width, convolution.current.in_filters)
        self._drawn = False

    def begin(self) -> None:
        """Take in the inputs of the row that is complete, if there is one, and go to the next row."""
        rows = self._rows.append(self.inputs.maps()) if self._drawn else self._rows.values.permute(0, 3, 1, 2)
        self._drawn = True
        self.base.maps().copy_(functional.conv2d(rows, self._above, self._bias, padding=(0, self._reach)))

    def operation(self, x: int, group: int, out: Float[Tensor, "b n"]) -> Operation:
        """The outputs of a colour group of a position."""
        window = self.inputs.window(x, self._reach, groups_seen(self._current, group))
        return partial(torch.addmm, self.base.group(x, group), window, self._products[group], out=out)
