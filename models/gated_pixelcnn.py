"""The Gated PixelCNN of van den Oord et al., arXiv 1606.05328, section 2 and Fig. 2, and its conditional form."""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.causal_conv import (
    GroupedPointwise,
    HorizontalConv,
    VerticalConv,
    pointwise,
    require_kernel_and_groups,
)
from models.conditioning import Conditioning, ConditionTerm, condition_term
from models.gate import gate


class GatedLayer(nn.Module):
    """One layer of Fig. 2: vertical stack, link, horizontal stack with residual, and the condition's terms (Eq. 4, 5).

    The last layer's vertical stack ends in the link: nothing would read its gated output. The link has no bias, as the
    horizontal convolution that it is added to has one, so that the row above the first one, all zeros, links to zeros.
    Parameters with p filters, kernel n, C colours, S filters of the condition, m = (n+1)/2 and i input filters:
    vertical 2p (m n i + 1), link 4p^2, horizontal 2p i (n-1)/2 + 2p i t + 2p, output p^2 (C+1)/(2C) + p,
    condition 4pS (2pS in the last layer); t is (C-1)/(2C) in the first layer (mask A) and (C+1)/(2C) in the others.
    """

    def __init__(
        self,
        in_filters: int,
        num_filters: int,
        kernel_size: int,
        channels: int,
        condition_filters: int,
        dropout: float,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.channels, self.dropout, self.residual, self.last = channels, dropout, not first, last
        width = 2 * num_filters
        self.vertical = VerticalConv(in_filters, width, kernel_size)
        self.link = nn.Conv2d(width, width, 1, bias=False)
        self.horizontal = HorizontalConv(in_filters, width, kernel_size, channels, "A" if first else "B", parts=2)
        self.output = GroupedPointwise(num_filters, num_filters, channels, "B")
        self.vertical_term = ConditionTerm(condition_filters, width) if condition_filters and not last else None
        self.horizontal_term = ConditionTerm(condition_filters, width) if condition_filters else None

    def forward(
        self,
        vertical: Float[Tensor, "b i h w"],
        horizontal: Float[Tensor, "b i h w"],
        source: Float[Tensor, "b s #h #w"] | None,
    ) -> tuple[Float[Tensor, "b v h w"], Float[Tensor, "b f h w"]]:
        """Both stacks' outputs; the last layer's vertical one is its input, as it goes nowhere."""
        above = self.vertical(vertical)
        outputs = vertical if self.last else self.gate_vertical(above, source)
        linked = pointwise(above, self.link.weight)
        gated = gate(self.horizontal(horizontal), linked, condition_term(self.horizontal_term, source))
        return outputs, self._horizontal_output(gated, horizontal)

    def gate_vertical(
        self, above: Float[Tensor, "b f2 h w"], source: Float[Tensor, "b s #h #w"] | None
    ) -> Float[Tensor, "b f h w"]:
        """The vertical stack's output from its pre-activation; it carries no residual."""
        return self._dropped(gate(above, term=condition_term(self.vertical_term, source)))

    def advance_horizontal(
        self,
        horizontal: Float[Tensor, "b i h w"],
        linked: Float[Tensor, "b f2 h w"],
        source: Float[Tensor, "b s #h #w"] | None,
    ) -> Float[Tensor, "b f h w"]:
        """The horizontal stack's output from its input and what the link brought of the row above each of its rows."""
        gated = gate(self.horizontal(horizontal) + linked, term=condition_term(self.horizontal_term, source))
        return self._horizontal_output(gated, horizontal)

    def _horizontal_output(
        self, gated: Float[Tensor, "b f h w"], horizontal: Float[Tensor, "b i h w"]
    ) -> Float[Tensor, "b f h w"]:
        outputs: Tensor = self.output(self._dropped(gated))
        return outputs.add_(horizontal) if self.residual else outputs

    def _dropped(self, gated: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f h w"]:
        return functional.dropout(gated, self.dropout, self.training) if self.dropout else gated

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of the convolutions, forward, an image; the condition's terms stand apart."""
        convolutions = self.vertical.flops(height, width) + self.horizontal.flops(height, width)
        return convolutions + 2 * self.link.weight.numel() * height * width + self.output.flops(height, width)

    def condition_flops(self, positions: int) -> int:
        """Floating-point operations of the condition's terms at that many positions of s, forward, an image."""
        terms = [term for term in (self.vertical_term, self.horizontal_term) if term is not None]
        return sum(2 * term.weight.numel() * positions for term in terms)


class GatedPixelCNN(nn.Module):
    """The body of the Gated PixelCNN: two stacks of gated convolutions that together see everything before.

    The receptive field of L layers of kernel n, r = (n-1)/2: on the row itself L r pixels to the left; in each of the
    L r + 1 rows above, L r pixels on both sides. It is a whole box: there is no blind spot.

    Args:
        channels: colours of a pixel, 1 or 3.
        num_layers: gated layers, the first one of mask type A.
        num_filters: filters p of each stack, a multiple of `channels`.
        kernel_size: n of the n x n and 1 x n convolutions, odd.
        dropout: share of gated activations set to zero in training.
        conditioning: what makes s of h for every layer; None for an unconditional model.

    Raises:
        ValueError: an argument is outside what is said above.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_layers: int,
        num_filters: int,
        kernel_size: int,
        dropout: float = 0.0,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        if channels not in (1, 3) or num_layers < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                "channels must be 1 or 3, num_layers at least 1 and dropout in [0, 1), got "
                f"{channels}, {num_layers} and {dropout}"
            )
        require_kernel_and_groups(kernel_size, channels, num_filters=num_filters)
        self.channels, self.num_features, self.conditioning = channels, num_filters, conditioning
        self.condition_size = conditioning.size if conditioning else 0
        self.condition_dropout = conditioning.dropout if conditioning else 0.0
        self.turn_kinds = conditioning.turn_kinds if conditioning else 0
        self.layers = nn.ModuleList(
            GatedLayer(
                num_filters if index else channels,
                num_filters,
                kernel_size,
                channels,
                conditioning.filters if conditioning else 0,
                dropout,
                first=index == 0,
                last=index == num_layers - 1,
            )
            for index in range(num_layers)
        )

    @property
    def gated_layers(self) -> list[GatedLayer]:
        """The layers, first to last, with their own type."""
        return cast(list[GatedLayer], list(self.layers))

    def forward(
        self, scaled: Float[Tensor, "b c h w"], condition: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b f h w"]:
        """Features of each position from scaled images and vectors h."""
        source = self.condition_source(condition, *scaled.shape[2:])
        vertical = horizontal = scaled
        for layer in self.gated_layers:
            vertical, horizontal = layer(vertical, horizontal, source)
        return horizontal

    def condition_source(
        self, condition: Float[Tensor, "b d"] | None, height: int, width: int
    ) -> Float[Tensor, "b s #h #w"] | None:
        """s of Eq. 5 for images of that size; None without a condition."""
        if self.conditioning is None or condition is None:
            return None
        source: Tensor = self.conditioning(condition, height, width)
        return source

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of one image forward, convolutions alone.

        At each position, with p filters, kernel n, m = (n+1)/2 and C colours, a layer after the first takes
        2 (2 m n p^2 + 4 p^2 + (n-1) p^2 + 2 p^2 (C+1)/(2C) + p^2 (C+1)/(2C)). A condition of S filters adds 8pS a layer
        (4pS in the last), once an image for Eq. 4 and at each position for Eq. 5, and m of Eq. 5 itself.
        """
        total = sum(layer.flops(height, width) for layer in self.gated_layers)
        if self.conditioning is None:
            return total
        positions = self.conditioning.positions(height, width)
        return total + self.conditioning.flops() + sum(one.condition_flops(positions) for one in self.gated_layers)
