"""Drawing images: the vertical stack goes a row at a time, the horizontal stack over the row for each sub-pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from models.gated_pixelcnn import GatedPixelCNN


@dataclass(frozen=True)
class Samples:
    """Drawn images and their negative log-likelihood in nats under the model (at temperature 1)."""

    images: UInt8[Tensor, "b c h w"]
    nats: Float64[Tensor, " b"]


def random_numbers(seeds: Sequence[int], dims: int) -> Float64[Tensor, "b dims"]:
    """Uniform numbers in [0, 1), a row an image from its own seed, so an image is the same in whatever batch."""
    rows = [torch.rand(dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def choose_levels(
    logits: Float[Tensor, "b levels"], uniform: Float64[Tensor, " b"], temperature: float = 1.0
) -> tuple[Int[Tensor, " b"], Float64[Tensor, " b"]]:
    """The levels where the cumulative probabilities pass the uniform numbers, and their nats at temperature 1."""
    log_probabilities = logits.double().log_softmax(1)
    tempered = (log_probabilities / temperature).softmax(1) if temperature != 1.0 else log_probabilities.exp()
    passed = tempered.cumsum(1) <= uniform[:, None]
    levels = passed.sum(1).clamp(max=logits.shape[1] - 1)
    return levels, -log_probabilities.gather(1, levels[:, None])[:, 0]


@torch.no_grad()
def draw(
    model: GatedPixelCNN,
    *,
    height: int,
    width: int,
    seeds: Sequence[int],
    labels: Int[Tensor, " b"] | None = None,
    temperature: float = 1.0,
) -> Samples:
    """One image for each seed, sub-pixels drawn in raster order, on the model's device.

    Args:
        model: in whatever mode; it draws in eval mode and is put back.
        height, width: pixels of the images; any size, not only the one trained on.
        seeds: one a image; the same seed, label and weights give the same image in every batch.
        labels: class of each image, for a conditional model.
        temperature: divides the log-probabilities; 1 draws from the model itself.

    Raises:
        ValueError: temperature is not positive, or labels don't fit the model or the seeds.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if labels is not None and len(labels) != len(seeds):
        raise ValueError(f"got {len(labels)} labels for {len(seeds)} seeds")
    model.require_labels(labels)
    was_training = model.training
    model.eval()
    try:
        return _draw_rows(model, height, width, seeds, labels, temperature)
    finally:
        model.train(was_training)


def _draw_rows(
    model: GatedPixelCNN, height: int, width: int, seeds: Sequence[int], labels: Tensor | None, temperature: float
) -> Samples:
    device, count = model.head.logits.bias.device, len(seeds)
    uniform = random_numbers(seeds, model.channels * height * width).view(count, height, width, model.channels)
    uniform = uniform.to(device)
    images = torch.zeros(count, model.channels, height, width, dtype=torch.uint8, device=device)
    nats = torch.zeros(count, dtype=torch.float64, device=device)
    above = _RowsAbove(model, count, width, labels)
    for y in range(height):
        row = images[:, :, y : y + 1]
        for x in range(width):
            for c in range(model.channels):
                logits = _row_logits(model, model.scale(row[..., : x + 1]), above.linked, labels)[:, c, 0, x]
                levels, level_nats = choose_levels(logits, uniform[:, y, x, c], temperature)
                row[:, c, 0, x] = levels.to(torch.uint8)
                nats += level_nats
        above.advance(model.scale(row))
    return Samples(images, nats)


def _row_logits(
    model: GatedPixelCNN, known: Float[Tensor, "b c 1 x"], linked: list[Tensor], labels: Tensor | None
) -> Float[Tensor, "b c 1 x levels"]:
    """Logits of a row's first positions from the row itself and what the links bring from above."""
    horizontal = known
    for layer, from_above in zip(model.gated_layers, linked, strict=True):
        horizontal = layer.advance_horizontal(horizontal, from_above[..., : known.shape[3]], labels)
    logits: Tensor = model.head(horizontal)
    return logits


class _RowsAbove:
    """The vertical stack at the row being drawn: each layer's last rows of input, and its link to that row."""

    def __init__(self, model: GatedPixelCNN, count: int, width: int, labels: Tensor | None) -> None:
        self.model, self.labels = model, labels
        bias = model.head.logits.bias
        self.inputs = [
            bias.new_zeros(count, layer.vertical.conv.in_channels, layer.vertical.rows, width)
            for layer in model.gated_layers
        ]
        self.linked = [
            layer.link(bias.new_zeros(count, layer.link.in_channels, 1, width)) for layer in model.gated_layers
        ]

    def advance(self, row: Float[Tensor, "b c 1 w"]) -> None:
        """Take in the row just drawn: one row of every layer's vertical stack, each computed once."""
        vertical = row
        for index, layer in enumerate(self.model.gated_layers):
            self.inputs[index] = torch.cat([self.inputs[index][:, :, 1:], vertical], dim=2)
            pre_activation = layer.vertical.valid_rows(self.inputs[index])
            self.linked[index] = layer.link(pre_activation)
            vertical = vertical if layer.last else layer.gate_vertical(pre_activation, self.labels)
