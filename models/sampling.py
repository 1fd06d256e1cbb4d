"""Drawing images, sub-pixel by sub-pixel.

In a Gated PixelCNN the vertical stack goes a row at a time and the horizontal stack over the row for each sub-pixel;
every other body is run on the rows so far for each sub-pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from models.autoregressive import AutoregressiveModel, Condition
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
    model: AutoregressiveModel,
    *,
    height: int,
    width: int,
    seeds: Sequence[int],
    condition: Condition | None = None,
    temperature: float = 1.0,
) -> Samples:
    """One image for each seed, sub-pixels drawn in raster order, on the model's device.

    Args:
        model: in whatever mode; it draws in eval mode and is put back.
        height, width: pixels of the images; any size, not only the one trained on.
        seeds: one a image; the same seed, condition and weights give the same image in every batch.
        condition: a label or a vector for each image, for a conditional model.
        temperature: divides the log-probabilities; 1 draws from the model itself.

    Raises:
        ValueError: temperature is not positive, or the condition doesn't fit the model or the seeds.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if condition is not None and len(condition) != len(seeds):
        raise ValueError(f"got a condition for {len(condition)} images and {len(seeds)} seeds")
    was_training = model.training
    model.eval()
    try:
        vectors = model.vectors(condition)
        rows = _GatedRows if isinstance(model.body, GatedPixelCNN) else _WholeRows
        return _draw_rows(model, rows(model, len(seeds), height, width, vectors), height, width, seeds, temperature)
    finally:
        model.train(was_training)


def _draw_rows(
    model: AutoregressiveModel,
    rows: "_GatedRows | _WholeRows",
    height: int,
    width: int,
    seeds: Sequence[int],
    temperature: float,
) -> Samples:
    device, count = model.head.logits.bias.device, len(seeds)
    uniform = random_numbers(seeds, model.channels * height * width).view(count, height, width, model.channels)
    uniform = uniform.to(device)
    images = torch.zeros(count, model.channels, height, width, dtype=torch.uint8, device=device)
    nats = torch.zeros(count, dtype=torch.float64, device=device)
    for y in range(height):
        for x in range(width):
            for c in range(model.channels):
                logits = rows.logits(images, y, x)[:, c]
                levels, level_nats = choose_levels(logits, uniform[:, y, x, c], temperature)
                images[:, c, y, x] = levels.to(torch.uint8)
                nats += level_nats
    return Samples(images, nats)


class _WholeRows:
    """Logits of a pixel by a pass over the rows so far."""

    def __init__(
        self, model: AutoregressiveModel, count: int, height: int, width: int, vectors: Float[Tensor, "b d"] | None
    ) -> None:
        self.model, self.vectors = model, vectors

    def logits(self, images: UInt8[Tensor, "b c h w"], y: int, x: int) -> Float[Tensor, "b c levels"]:
        """Logits of the pixel from the images' rows up to its own."""
        return self.model.logits_of_scaled(self.model.scale(images[:, :, : y + 1]), self.vectors)[:, :, y, x]


class _GatedRows:
    """The two stacks at the row being drawn: the vertical one computed once a row, the horizontal one for each pixel.

    Each layer holds its last rows of vertical input, and what its link brings to the row.
    """

    def __init__(
        self, model: AutoregressiveModel, count: int, height: int, width: int, vectors: Float[Tensor, "b d"] | None
    ) -> None:
        assert isinstance(model.body, GatedPixelCNN)
        self.model, self.body, self.row = model, model.body, 0
        self.source = self.body.condition_source(vectors, height, width)
        bias = model.head.logits.bias
        self.inputs = [
            bias.new_zeros(count, layer.vertical.conv.in_channels, layer.vertical.rows, width)
            for layer in self.body.gated_layers
        ]
        self.linked = [
            layer.link(bias.new_zeros(count, layer.link.in_channels, 1, width)) for layer in self.body.gated_layers
        ]

    def logits(self, images: UInt8[Tensor, "b c h w"], y: int, x: int) -> Float[Tensor, "b c levels"]:
        """Logits of the pixel from the images' rows up to its own."""
        while self.row < y:
            self._advance(self.model.scale(images[:, :, self.row : self.row + 1]))
        horizontal = self.model.scale(images[:, :, y : y + 1, : x + 1])
        source = self._source_of_row(y, x + 1)
        for layer, from_above in zip(self.body.gated_layers, self.linked, strict=True):
            horizontal = layer.advance_horizontal(horizontal, from_above[..., : x + 1], source)
        logits: Tensor = self.model.head(horizontal)
        return logits[:, :, 0, x]

    def _advance(self, row: Float[Tensor, "b c 1 w"]) -> None:
        """Take in the row just drawn: one row of every layer's vertical stack, each computed once."""
        vertical, source = row, self._source_of_row(self.row, row.shape[3])
        for index, layer in enumerate(self.body.gated_layers):
            self.inputs[index] = torch.cat([self.inputs[index][:, :, 1:], vertical], dim=2)
            pre_activation = layer.vertical.valid_rows(self.inputs[index])
            self.linked[index] = layer.link(pre_activation)
            vertical = vertical if layer.last else layer.gate_vertical(pre_activation, source)
        self.row += 1

    def _source_of_row(self, y: int, width: int) -> Float[Tensor, "b s 1 #w"] | None:
        if self.source is None or self.source.shape[2] == 1:
            return self.source
        return self.source[:, :, y : y + 1, :width]
