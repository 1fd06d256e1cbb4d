"""The PixelCNN of van den Oord et al., arXiv 1601.06759, section 3.5, Fig. 5 (left) and Table 1."""

from jaxtyping import Float
from torch import Tensor, nn

from models.causal_conv import CausalConv, GroupedPointwise, require_kernel_and_groups


class ResidualBlock(nn.Module):
    """2h features to h, a masked n x n convolution of h, back to 2h, and the input added; ReLU before each.

    Parameters with C colours and r = (n-1)/2: 2 x 2h^2 t + h^2 (n r + r + t) + 4h, t = (C+1)/(2C).
    """

    def __init__(self, num_filters: int, kernel_size: int, channels: int) -> None:
        super().__init__()
        self.reduce = GroupedPointwise(2 * num_filters, num_filters, channels, "B")
        self.masked = CausalConv(num_filters, num_filters, kernel_size, channels, "B")
        self.expand = GroupedPointwise(num_filters, 2 * num_filters, channels, "B")

    def forward(self, features: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f h w"]:
        inner = self.masked(self.reduce(features.relu()).relu())
        return features + self.expand(inner.relu())

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of the convolutions, forward, an image."""
        return sum(part.flops(height, width) for part in (self.reduce, self.masked, self.expand))


class PixelCNN(nn.Module):
    """The body of the PixelCNN: a 7x7 convolution of mask type A, then residual blocks of mask type B.

    One stack of masked convolutions doesn't see all that is before a pixel. With a first kernel of reach R and L blocks
    of reach r it sees, D rows up (1 <= D <= R + L r), R + L r pixels to the left but only R + r min(L, D-1) to the
    right, as a block goes right only where it also goes up. What is missing on the right is the blind spot that the two
    stacks of Gated PixelCNN close (arXiv 1606.05328, Fig. 1). On the row itself it sees R + L r pixels to the left.

    Parameters: the first convolution 2hC (R (2R+1) + R + (C-1)/(2C)) + 2h, and the blocks.

    Args:
        channels: colours of a pixel, 1 or 3.
        num_layers: residual blocks after the first convolution.
        num_filters: h of the paper, a multiple of `channels`; the features are 2h.
        first_kernel_size: n of the first convolution, odd.
        kernel_size: n of the blocks' convolutions, odd.

    Raises:
        ValueError: an argument is outside what is said above.
    """

    condition_size = 0
    condition_dropout = 0.0
    turn_kinds = 0

    def __init__(
        self, *, channels: int, num_layers: int, num_filters: int, first_kernel_size: int = 7, kernel_size: int = 3
    ) -> None:
        super().__init__()
        if channels not in (1, 3) or num_layers < 1:
            raise ValueError(f"channels must be 1 or 3 and num_layers at least 1, got {channels} and {num_layers}")
        for size in (first_kernel_size, kernel_size):
            require_kernel_and_groups(size, channels, num_filters=num_filters)
        self.channels, self.num_features = channels, 2 * num_filters
        self.first = CausalConv(channels, 2 * num_filters, first_kernel_size, channels, "A")
        self.blocks = nn.ModuleList(ResidualBlock(num_filters, kernel_size, channels) for _ in range(num_layers))

    def forward(self, scaled: Float[Tensor, "b c h w"], condition: None = None) -> Float[Tensor, "b f h w"]:
        """Features of each position from scaled images."""
        features: Tensor = self.first(scaled)
        for block in self.blocks:
            features = block(features)
        return features

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of one image forward, convolutions alone.

        At each position, with reach r and R of the kernels, C colours and t = (C+1)/(2C): the first convolution
        4hC (R (2R+1) + R + (C-1)/(2C)), a block 2 (4 h^2 t + h^2 (r (2r+1) + r + t)).
        """
        blocks = [block for block in self.blocks if isinstance(block, ResidualBlock)]
        return self.first.flops(height, width) + sum(block.flops(height, width) for block in blocks)
