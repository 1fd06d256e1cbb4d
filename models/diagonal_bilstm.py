"""Diagonal BiLSTM: two scans of the diagonals, from the upper left and from the upper right corner.

Source: van den Oord et al., arXiv 1601.06759, section 3.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.causal_conv import GroupedPointwise, pointwise, require_kernel_and_groups, shift_down
from models.lstm_scan import StateToState, lstm_scan


class DiagonalBiLSTM(nn.Module):
    """2h features to h: the scan from the left, plus the one from the right moved one row down.

    The input-to-state convolutions are 1 x 1 of mask type B, one for each direction. The state-to-state one is 2 x 1
    along the diagonals: from the left it reads the pixel beside on the left and the one above. So it sees the whole
    rectangle above and to the left; from the right the whole one above and to the right, whose own row counts as seen
    only from one row below, as it holds what is not yet known.
    Parameters with C colours and t = (C+1)/(2C): 2 (8h^2 t + 4h), and 16h^2 of the state.

    Args:
        num_filters: h, a multiple of the channels.
        channels: colours of a pixel.

    Raises:
        ValueError: h is no multiple of the channels.
    """

    def __init__(self, num_filters: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        require_kernel_and_groups(3, channels, num_filters=num_filters)
        self.from_left = GroupedPointwise(2 * num_filters, 4 * num_filters, channels, "B", parts=4)
        self.from_right = GroupedPointwise(2 * num_filters, 4 * num_filters, channels, "B", parts=4)
        self.state = StateToState(num_filters, taps=2, directions=2)

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        left, right = self.from_left.kernel_and_bias(), self.from_right.kernel_and_bias()
        kernel, bias = (torch.cat(both) for both in zip(left, right, strict=True))
        gates = pointwise(features, kernel, bias)
        hidden = lstm_scan(gates.permute(0, 2, 3, 1).unflatten(3, (2, -1)), self.state.matrices(), diagonal=True)
        rightwards, leftwards = hidden.permute(0, 1, 4, 2, 3)
        return rightwards + shift_down(leftwards)

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of all convolutions, forward, an image: 2 x (16h^2 t + 16h^2) at each position."""
        inputs = self.from_left.flops(height, width) + self.from_right.flops(height, width)
        return inputs + self.state.flops(height, width)
