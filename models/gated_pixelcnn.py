"""The class-conditional Gated PixelCNN of van den Oord et al., arXiv 1606.05328, section 2 and Fig. 2."""

from typing import cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from models.causal_conv import GroupedPointwise, HorizontalConv, VerticalConv, require_kernel_and_groups, shift_down


def gate(features: Float[Tensor, "b f2 h w"], groups: int, dropout: float = 0.0) -> Float[Tensor, "b f h w"]:
    """tanh(first half) * sigmoid(second half), the halves taken inside each colour group (Eq. 2).

    A split of all channels in two would hand one colour's features to another's gate and leak.
    """
    content, control = features.unflatten(1, (groups, 2, -1)).unbind(2)
    gated = (content.tanh() * control.sigmoid()).flatten(1, 2)
    return functional.dropout(gated, dropout) if dropout else gated


class GatedLayer(nn.Module):
    """One layer of Fig. 2: vertical stack, link, horizontal stack with residual, and the label's biases (Eq. 4).

    The last layer's vertical stack ends in the link: nothing would read its gated output.
    Parameters with p filters, kernel n, C colours, K classes, m = (n+1)/2 and i input filters: vertical 2p (m n i + 1),
    link 2p (2p + 1), horizontal 2p i (n-1)/2 + 2p i t + 2p, output p^2 (C+1)/(2C) + p, labels 4pK (2pK in the last
    layer); t is (C-1)/(2C) in the first layer (mask A) and (C+1)/(2C) in the others (mask B).
    """

    def __init__(
        self,
        in_filters: int,
        num_filters: int,
        kernel_size: int,
        channels: int,
        num_classes: int,
        dropout: float,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.channels, self.dropout, self.residual, self.last = channels, dropout, not first, last
        width = 2 * num_filters
        self.vertical = VerticalConv(in_filters, width, kernel_size)
        self.link = nn.Conv2d(width, width, 1)
        self.horizontal = HorizontalConv(in_filters, width, kernel_size, channels, "A" if first else "B")
        self.output = GroupedPointwise(num_filters, num_filters, channels, "B")
        self.vertical_label = nn.Embedding(num_classes, width) if num_classes and not last else None
        self.horizontal_label = nn.Embedding(num_classes, width) if num_classes else None
        for embedding in (self.vertical_label, self.horizontal_label):
            if embedding is not None:
                nn.init.zeros_(embedding.weight)

    def forward(
        self,
        vertical: Float[Tensor, "b i h w"],
        horizontal: Float[Tensor, "b i h w"],
        labels: Int[Tensor, " b"] | None,
    ) -> tuple[Float[Tensor, "b v h w"], Float[Tensor, "b f h w"]]:
        """Both stacks' outputs; the last layer's vertical one is its input, as it goes nowhere."""
        above = self.vertical(vertical)
        linked = self.link(shift_down(above))
        outputs = vertical if self.last else self.gate_vertical(above, labels)
        return outputs, self.advance_horizontal(horizontal, linked, labels)

    def gate_vertical(
        self, above: Float[Tensor, "b f2 h w"], labels: Int[Tensor, " b"] | None
    ) -> Float[Tensor, "b f h w"]:
        """The vertical stack's output from its pre-activation; it carries no residual."""
        biased = _add_label(above, self.vertical_label, labels)
        return gate(biased, self.channels, self.dropout if self.training else 0.0)

    def advance_horizontal(
        self,
        horizontal: Float[Tensor, "b i h w"],
        linked: Float[Tensor, "b f2 h w"],
        labels: Int[Tensor, " b"] | None,
    ) -> Float[Tensor, "b f h w"]:
        """The horizontal stack's output from its input and what the link brings from the rows above."""
        biased = _add_label(self.horizontal(horizontal) + linked, self.horizontal_label, labels)
        outputs: Tensor = self.output(gate(biased, self.channels, self.dropout if self.training else 0.0))
        return outputs + horizontal if self.residual else outputs

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of the convolutions, forward, an image."""
        convolutions = self.vertical.flops(height, width) + self.horizontal.flops(height, width)
        return convolutions + 2 * self.link.weight.numel() * height * width + self.output.flops(height, width)


class SoftmaxHead(nn.Module):
    """Logits of every sub-pixel's levels: ReLU, 1x1, ReLU, 1x1, each 1x1 block-triangular over the colours."""

    def __init__(self, num_filters: int, head_filters: int, channels: int, levels: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.hidden = GroupedPointwise(num_filters, head_filters, channels, "B")
        self.logits = GroupedPointwise(head_filters, channels * levels, channels, "B")

    def forward(self, features: Float[Tensor, "b f h w"]) -> Float[Tensor, "b c h w levels"]:
        logits: Tensor = self.logits(self.hidden(features.relu()).relu())
        return logits.unflatten(1, (self.channels, self.levels)).permute(0, 1, 3, 4, 2)

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of both 1x1 convolutions, forward, an image."""
        return self.hidden.flops(height, width) + self.logits.flops(height, width)


class GatedPixelCNN(nn.Module):
    """p(image | label) as a product over sub-pixels in raster order, R before G before B.

    Args:
        channels: colours of a pixel, 1 or 3.
        levels: values that a sub-pixel takes, 2 to 256.
        num_layers: gated layers, the first one of mask type A.
        num_filters: filters p of each stack, a multiple of `channels`.
        kernel_size: n of the n x n and 1 x n convolutions, odd.
        head_filters: filters between the two 1x1 convolutions of the head, a multiple of `channels`.
        num_classes: labels to condition on, 0 for an unconditional model.
        dropout: share of gated activations set to zero in training.

    Raises:
        ValueError: an argument is outside what is said above.
    """

    def __init__(
        self,
        *,
        channels: int,
        levels: int,
        num_layers: int,
        num_filters: int,
        kernel_size: int,
        head_filters: int,
        num_classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels not in (1, 3) or not 2 <= levels <= 256 or num_layers < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                "channels must be 1 or 3, levels 2 to 256, num_layers at least 1 and dropout in [0, 1), got "
                f"{channels}, {levels}, {num_layers} and {dropout}"
            )
        require_kernel_and_groups(kernel_size, channels, num_filters=num_filters, head_filters=head_filters)
        self.channels, self.levels, self.num_classes = channels, levels, num_classes
        self.layers = nn.ModuleList(
            GatedLayer(
                num_filters if index else channels,
                num_filters,
                kernel_size,
                channels,
                num_classes,
                dropout,
                first=index == 0,
                last=index == num_layers - 1,
            )
            for index in range(num_layers)
        )
        self.head = SoftmaxHead(num_filters, head_filters, channels, levels)

    @property
    def gated_layers(self) -> list[GatedLayer]:
        """The layers, first to last, with their own type."""
        return cast(list[GatedLayer], list(self.layers))

    def forward(
        self, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w levels"]:
        """Logits of each sub-pixel given all before it; those of a position never depend on it or on later ones."""
        return self.logits_of_scaled(self.scale(images), labels)

    def scale(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Levels 0 .. levels-1 as numbers from -1 to 1 in the parameters' dtype."""
        return images.to(self.head.logits.bias.dtype) * (2.0 / (self.levels - 1)) - 1.0

    def logits_of_scaled(
        self, scaled: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None
    ) -> Float[Tensor, "b c h w levels"]:
        """`forward` from scaled images, so that a gradient by them can be taken."""
        self.require_labels(labels)
        vertical = horizontal = scaled
        for layer in self.gated_layers:
            vertical, horizontal = layer(vertical, horizontal, labels)
        logits: Tensor = self.head(horizontal)
        return logits

    def require_labels(self, labels: Int[Tensor, " b"] | None) -> None:
        """Raise ValueError unless labels are given exactly when the model is conditional."""
        if (labels is None) == bool(self.num_classes):
            raise ValueError(f"a model of {self.num_classes} classes got {'no ' if labels is None else ''}labels")

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of one image forward, convolutions alone; training takes three times as many.

        At each position, with p filters, kernel n, m = (n+1)/2, C colours, q head filters and L levels, a layer after
        the first takes 2 (2 m n p^2 + 4 p^2 + (n-1) p^2 + 2 p^2 (C+1)/(2C) + p^2 (C+1)/(2C)) and the head
        2 (p q + q C L) (C+1)/(2C).
        """
        return sum(layer.flops(height, width) for layer in self.gated_layers) + self.head.flops(height, width)


def _add_label(
    features: Float[Tensor, "b f h w"], embedding: nn.Embedding | None, labels: Int[Tensor, " b"] | None
) -> Float[Tensor, "b f h w"]:
    if embedding is None or labels is None:
        return features
    return features + embedding(labels)[:, :, None, None]


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of the model; every one of them counts, as nothing is masked."""
    return sum(parameter.numel() for parameter in model.parameters())


def empty_model(**arguments: int | float) -> GatedPixelCNN:
    """The model on torch's meta device: its shapes, parameters and FLOPs without memory or time."""
    with torch.device("meta"):
        return GatedPixelCNN(**arguments)  # type: ignore[arg-type]
