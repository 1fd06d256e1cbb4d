"""Convolutions that are causal by shape: kernels are cropped to what a position may see, never masked.

Channels of the horizontal stack stand in groups, one for each colour, in the order R, G, B (one group for grey).
Group g of a position may depend on every colour of the positions before it in raster order and, at the position
itself, on the colours before g (mask type "A") or up to and including g (mask type "B").
Source: van den Oord et al., arXiv 1601.06759, section 3.4 (mask types) and arXiv 1606.05328, section 2.2 (cropping).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

MaskType = Literal["A", "B"]

SCALE_RATE = 4.0
"""A trained scale is the exponential of so many times its parameter: it has to follow what hundreds of weights do."""


def require_kernel_and_groups(kernel_size: int, groups: int, **widths: int) -> None:
    """Raise ValueError unless the kernel is odd and above 1 and every width is a multiple of the groups."""
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}")
    for name, width in widths.items():
        if width % groups:
            raise ValueError(f"{name} must be a multiple of the {groups} colour groups, got {width}")


def parts_first(channels: Float[Tensor, "o *rest"], groups: int, parts: int) -> Float[Tensor, "o *rest"]:
    """Output channels ordered by part, then by colour group, from groups that have all their parts side by side.

    The parts are the two halves of a gated unit or the four gates of an LSTM.
    """
    return channels.unflatten(0, (groups, parts, -1)).transpose(0, 1).flatten(0, 2)


def shift_down(rows: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f h w"]:
    """The same maps one row lower, zeros in the first row: row y then holds what was known above row y."""
    return functional.pad(rows, (0, 0, 1, 0))[:, :, :-1]


def pointwise(
    features: Float[Tensor, "b i h w"], kernel: Float[Tensor, "o i 1 1"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "b o h w"]:
    """A 1x1 convolution; for a compiler it is the matrix product that it is over channels_last maps.

    From a convolution Inductor made a product over contiguous maps, with a copy from and to channels_last around it.
    """
    if not torch.compiler.is_compiling():
        return functional.conv2d(features, kernel, bias)
    return functional.linear(features.permute(0, 2, 3, 1), kernel[:, :, 0, 0], bias).permute(0, 3, 1, 2)


class VerticalConv(nn.Module):
    """The n x n convolution of the vertical stack, cropped to its upper (n+1)/2 rows: row y sees rows up to y.

    Every colour of those rows may be seen, so it has no groups; the shift by one row stands in the link to the
    horizontal stack (`shift_down`).
    """

    def __init__(self, in_filters: int, out_filters: int, kernel_size: int) -> None:
        super().__init__()
        require_kernel_and_groups(kernel_size, groups=1)
        self.rows, self.reach = (kernel_size + 1) // 2, kernel_size // 2
        self.conv = nn.Conv2d(in_filters, out_filters, (self.rows, kernel_size), padding=(0, self.reach))

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return self.valid_rows(functional.pad(features, (0, 0, self.rows - 1, 0)))

    def valid_rows(self, features: Float[Tensor, "b i rows w"]) -> Float[Tensor, "b o outputs w"]:
        """Outputs of those rows alone that have all their (n-1)/2 rows above in `features`."""
        outputs: Tensor = self.conv(features)
        return outputs

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations an image: 2 x (n+1)/2 x n x in x out at each position."""
        return 2 * self.conv.weight.numel() * height * width


class GroupedPointwise(nn.Module):
    """A 1x1 convolution between colour groups, block-triangular: group g sees groups before g (A) or up to g (B).

    Only the blocks that exist are parameters, one tensor a group; `kernel_and_bias` lays them into one matrix with
    zeros elsewhere. Type A has no block for the first group. Parameters stand group by group; outputs are ordered by
    part first, each part with all groups (`parts_first`). Outputs are `scale` times what the parameters alone give, so
    that a step of the optimiser moves them so much further; with `trained_scale` each group's by a factor of its own,
    1 at the start, the exponential of SCALE_RATE times a parameter.
    """

    def __init__(
        self,
        in_filters: int,
        out_filters: int,
        groups: int,
        mask_type: MaskType,
        parts: int = 1,
        scale: float = 1.0,
        trained_scale: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.log_scale = nn.Parameter(torch.zeros(groups)) if trained_scale else None
        require_kernel_and_groups(3, groups * parts, out_filters=out_filters)
        require_kernel_and_groups(3, groups, in_filters=in_filters)
        self.groups, self.parts, self.in_filters, self.out_filters = groups, parts, in_filters, out_filters
        visible = range(1, groups) if mask_type == "A" else range(1, groups + 1)
        self.blocks = nn.ParameterList(
            nn.Parameter(torch.empty(out_filters // groups, seen * in_filters // groups)) for seen in visible
        )
        self.bias = nn.Parameter(torch.zeros(out_filters))
        for block in self.blocks:
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))

    def kernel_and_bias(self) -> tuple[Float[Tensor, "o i 1 1"], Float[Tensor, " o"]]:
        """The block-triangular matrix, zeros where a group may not look, as a 1x1 kernel; and the bias."""
        padded = [functional.pad(block, (0, self.in_filters - block.shape[1])) for block in self.blocks]
        blind = self.out_filters - sum(len(block) for block in self.blocks)
        kernel: Tensor = torch.cat([self.bias.new_zeros(blind, self.in_filters), *padded])
        bias: Tensor = self.bias
        if self.scale != 1.0:
            kernel, bias = kernel * self.scale, bias * self.scale
        if self.log_scale is not None:
            factors = (SCALE_RATE * self.log_scale).exp().repeat_interleave(self.out_filters // self.groups)
            kernel, bias = kernel * factors[:, None], bias * factors
        ordered, bias = (parts_first(one, self.groups, self.parts) for one in (kernel, bias))
        return ordered[:, :, None, None], bias

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return pointwise(features, *self.kernel_and_bias())

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations an image that the blocks need: 2 x their entries at each position."""
        return 2 * sum(block.numel() for block in self.blocks) * height * width


class HorizontalConv(nn.Module):
    """The 1 x n convolution of the horizontal stack, cropped to (n-1)/2 positions on the left and the position itself.

    The left part is dense over the colours; the position itself goes through `GroupedPointwise` blocks. Outputs are
    ordered by part first, as theirs.
    """

    def __init__(
        self, in_filters: int, out_filters: int, kernel_size: int, groups: int, mask_type: MaskType, parts: int = 1
    ) -> None:
        super().__init__()
        require_kernel_and_groups(kernel_size, groups, in_filters=in_filters, out_filters=out_filters)
        self.reach = kernel_size // 2
        self.left = nn.Parameter(torch.empty(out_filters, in_filters, 1, self.reach))
        nn.init.kaiming_uniform_(self.left, a=math.sqrt(5))
        self.current = GroupedPointwise(in_filters, out_filters, groups, mask_type, parts)

    def kernel_and_bias(self) -> tuple[Float[Tensor, "o i 1 n"], Float[Tensor, " o"]]:
        """The cropped kernel, which is the left and the position itself, and the bias, in the outputs' order."""
        current, bias = self.current.kernel_and_bias()
        left = parts_first(self.left, self.current.groups, self.current.parts)
        return torch.cat([left, current], dim=3), bias

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return functional.conv2d(functional.pad(features, (self.reach, 0, 0, 0)), *self.kernel_and_bias())

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations an image: the dense left part and the blocks of the position itself."""
        return 2 * self.left.numel() * height * width + self.current.flops(height, width)


class CausalConv(nn.Module):
    """The n x n masked convolution of PixelCNN in one piece, cropped to its upper (n+1)/2 rows.

    Dense over the colours in the rows above and on the left; the position itself goes through `GroupedPointwise`
    blocks. Only (n-1)/2 zeros, right of the position itself, remain in the kernel that is run.
    """

    def __init__(self, in_filters: int, out_filters: int, kernel_size: int, groups: int, mask_type: MaskType) -> None:
        super().__init__()
        require_kernel_and_groups(kernel_size, groups, in_filters=in_filters, out_filters=out_filters)
        self.reach = kernel_size // 2
        self.above = nn.Parameter(torch.empty(out_filters, in_filters, self.reach, kernel_size))
        self.left = nn.Parameter(torch.empty(out_filters, in_filters, 1, self.reach))
        for part in (self.above, self.left):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        self.current = GroupedPointwise(in_filters, out_filters, groups, mask_type)

    def kernel_and_bias(self) -> tuple[Float[Tensor, "o i rows n"], Float[Tensor, " o"]]:
        """The cropped kernel, which is the rows above, the left, the position itself and the zeros right of it."""
        current, bias = self.current.kernel_and_bias()
        row = functional.pad(torch.cat([self.left, current], dim=3), (0, self.reach))
        return torch.cat([self.above, row], dim=2), bias

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        padded = functional.pad(features, (self.reach, self.reach, self.reach, 0))
        return functional.conv2d(padded, *self.kernel_and_bias())

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations an image that the mask leaves: above, left, and the blocks of the position."""
        dense = 2 * (self.above.numel() + self.left.numel()) * height * width
        return dense + self.current.flops(height, width)
