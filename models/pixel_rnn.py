"""The PixelRNN of van den Oord et al., arXiv 1601.06759, sections 3.1 to 3.3, Fig. 5 (right) and Table 1."""

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.causal_conv import CausalConv, GroupedPointwise, require_kernel_and_groups
from models.diagonal_bilstm import DiagonalBiLSTM
from models.row_lstm import RowLSTM

Recurrence = Literal["row", "diagonal"]


class RecurrentBlock(nn.Module):
    """2h features to h in the LSTM, and by a 1x1 convolution back to 2h, to which the input is added if `residual`.

    Parameters: the LSTM's, and 2h^2 t + 2h for each of the two 1x1 convolutions, t = (C+1)/(2C) with C colours.
    """

    def __init__(self, recurrent: RowLSTM | DiagonalBiLSTM, num_filters: int, residual: bool, skip: bool) -> None:
        super().__init__()
        self.recurrent, self.residual = recurrent, residual
        self.expand = GroupedPointwise(num_filters, 2 * num_filters, recurrent.channels, "B")
        self.skip = GroupedPointwise(num_filters, 2 * num_filters, recurrent.channels, "B") if skip else None

    def forward(
        self, features: Float[Tensor, "b f h w"]
    ) -> tuple[Float[Tensor, "b f h w"], Float[Tensor, "b f h w"] | None]:
        """What goes on to the next block, and what skips to the output."""
        hidden = self.recurrent(features)
        expanded = self.expand(hidden)
        return expanded + features if self.residual else expanded, self.skip(hidden) if self.skip is not None else None

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of the convolutions, forward, an image."""
        parts = [self.recurrent, self.expand] if self.skip is None else [self.recurrent, self.expand, self.skip]
        return sum(part.flops(height, width) for part in parts)


class PixelRNN(nn.Module):
    """The body of the PixelRNN: an n x n convolution of mask type A, then blocks of Row LSTM or Diagonal BiLSTM.

    The receptive field of L layers, first kernel of reach R = (n-1)/2. Row LSTM, with state-to-state kernels of reach
    s <= R: on the row itself R + L pixels to the left; D rows above, for each D >= 1 up to the image's border, from
    D s + L + R pixels to the left to (D-1) s + R to the right. What lies outside that triangle is its blind spot.
    Diagonal BiLSTM, for any L: everything before, but for one sub-pixel. The last one of a row is in none of that row's
    features; the row below sees it in the first convolution alone, so no further than R pixels from the right border.

    Parameters: the first convolution 2hC (R (2R+1) + R + (C-1)/(2C)) + 2h, and the blocks.

    Args:
        channels: colours of a pixel, 1 or 3.
        recurrence: "row" for Row LSTM, "diagonal" for Diagonal BiLSTM.
        num_layers: blocks after the first convolution.
        num_filters: h of the paper, a multiple of `channels`; the features are 2h.
        kernel_size: n of the first convolution, odd.
        state_kernel_size: of Row LSTM's state-to-state convolution, odd; its input-to-state one is of kernel 3.
        residual: add each block's input to its output.
        skip: add a 1x1 convolution of each block's hidden states to the features that leave the body.

    Raises:
        ValueError: an argument is outside what is said above.
    """

    condition_size = 0
    condition_dropout = 0.0
    turn_kinds = 0

    def __init__(
        self,
        *,
        channels: int,
        recurrence: Recurrence,
        num_layers: int,
        num_filters: int,
        kernel_size: int = 7,
        state_kernel_size: int = 3,
        residual: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__()
        if channels not in (1, 3) or num_layers < 1 or recurrence not in ("row", "diagonal"):
            raise ValueError(
                "channels must be 1 or 3, num_layers at least 1 and recurrence row or diagonal, got "
                f"{channels}, {num_layers} and {recurrence}"
            )
        require_kernel_and_groups(kernel_size, channels, num_filters=num_filters)
        self.channels, self.num_features = channels, 2 * num_filters
        self.first = CausalConv(channels, 2 * num_filters, kernel_size, channels, "A")
        layers = [
            RowLSTM(num_filters, channels, state_kernel_size=state_kernel_size)
            if recurrence == "row"
            else DiagonalBiLSTM(num_filters, channels)
            for _ in range(num_layers)
        ]
        self.blocks = nn.ModuleList(RecurrentBlock(layer, num_filters, residual, skip) for layer in layers)

    def forward(self, scaled: Float[Tensor, "b c h w"], condition: None = None) -> Float[Tensor, "b f h w"]:
        """Features of each position from scaled images."""
        # The scan reads all features of a position together, so they stand together in memory from the start.
        features = self.first(scaled).contiguous(memory_format=torch.channels_last)
        skipped = []
        for block in self.blocks:
            features, extra = block(features)
            skipped += [] if extra is None else [extra]
        return sum(skipped, start=features)

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of one image forward, convolutions and state-to-state products alone.

        At each position, with reach R of the first kernel and m of the state kernel, C colours and t = (C+1)/(2C): the
        first convolution 4hC (R (2R+1) + R + (C-1)/(2C)); a block of Row LSTM 2 (8h^2 (1 + t) + 4h^2 m), of Diagonal
        BiLSTM 2 (16h^2 t + 16h^2), and 4h^2 t for each of its one or two 1x1 convolutions.
        """
        blocks = cast(list[RecurrentBlock], list(self.blocks))
        return self.first.flops(height, width) + sum(block.flops(height, width) for block in blocks)
