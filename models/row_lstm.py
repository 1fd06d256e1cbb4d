"""Row LSTM: each row reads the one above through a convolution along the row.

Source: van den Oord et al., arXiv 1601.06759, section 3.1.
"""

from jaxtyping import Float
from torch import Tensor, nn

from models.causal_conv import HorizontalConv, require_kernel_and_groups
from models.lstm_scan import StateToState, lstm_scan


class RowLSTM(nn.Module):
    """2h features to h: from top to bottom, a row at a time.

    The input-to-state convolution, 1 x n of mask type B, sees the position and r = (n-1)/2 to its left; the
    state-to-state convolution, 1 x m without a mask, sees s = (m-1)/2 on both sides in the row above, all of whose
    colours are known. So D rows above it sees the columns from D s + r to the left to D s to the right: a triangle.
    Parameters with C colours and t = (C+1)/(2C): 8h^2 (r + t) + 4h, and 4h^2 m of the state.

    Args:
        num_filters: h, a multiple of the channels.
        channels: colours of a pixel.
        kernel_size: n, odd.
        state_kernel_size: m, odd.

    Raises:
        ValueError: an argument is outside what is said above.
    """

    def __init__(self, num_filters: int, channels: int, kernel_size: int = 3, state_kernel_size: int = 3) -> None:
        super().__init__()
        self.channels = channels
        require_kernel_and_groups(state_kernel_size, channels, num_filters=num_filters)
        self.inputs = HorizontalConv(2 * num_filters, 4 * num_filters, kernel_size, channels, "B", parts=4)
        self.state = StateToState(num_filters, state_kernel_size, directions=1)

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        gates = self.inputs(features)
        hidden = lstm_scan(gates.permute(0, 2, 3, 1).unsqueeze(3), self.state.matrices(), diagonal=False)
        return hidden[0].permute(0, 3, 1, 2)

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of both convolutions, forward, an image: 2 x (8h^2 (r + t) + 4h^2 m) a position."""
        return self.inputs.flops(height, width) + self.state.flops(height, width)
