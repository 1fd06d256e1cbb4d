"""Drawing images, sub-pixel by sub-pixel, each layer's output of each sub-pixel computed once (models.incremental)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from models.autoregressive import AutoregressiveModel, Condition
from models.incremental.head import HeadRow
from models.incremental.rows import row_of
from models.scaling import scale_levels


@dataclass(frozen=True)
class Known:
    """What of the images is given: they are completed. The likelihood counts the drawn sub-pixels alone."""

    images: UInt8[Tensor, "b c h w"]
    mask: Bool[Tensor, "b h w"]
    """True where a pixel is given."""


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
    known: Known | None = None,
    after_row: Callable[[int], None] | None = None,
) -> Samples:
    """One image for each seed, sub-pixels drawn in raster order, on the model's device.

    Under autocast the arithmetic is done in its dtype, else in that of the parameters.

    Args:
        model: in whatever mode; it draws in eval mode and is put back.
        height, width: pixels of the images; any size, not only the one trained on.
        seeds: one a image; the same seed, condition and weights give the same image in every batch.
        condition: a label or a vector for each image, for a conditional model.
        temperature: divides the log-probabilities; 1 draws from the model itself.
        known: pixels that are given and not drawn.
        after_row: called with the number of rows that are done after each of them.

    Raises:
        ValueError: temperature is not positive, or the condition or what is known doesn't fit the model or the seeds.
    """
    shape = (len(seeds), model.channels, height, width)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if condition is not None and len(condition) != len(seeds):
        raise ValueError(f"got a condition for {len(condition)} images and {len(seeds)} seeds")
    if known is not None and (known.images.shape != shape or known.mask.shape != (len(seeds), height, width)):
        raise ValueError(
            f"known images must be of shape {list(shape)} and their mask without colours, got "
            f"{list(known.images.shape)} and {list(known.mask.shape)}"
        )
    was_training = model.training
    model.eval()
    device = model.head.logits.bias.device
    dtype = model.head.logits.bias.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    try:
        with torch.autocast(device.type, enabled=False):
            return _draw(model, shape, dtype, seeds, model.vectors(condition), temperature, known, after_row)
    finally:
        model.train(was_training)


def _draw(
    model: AutoregressiveModel,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    seeds: Sequence[int],
    vectors: Float[Tensor, "b d"] | None,
    temperature: float,
    known: Known | None,
    after_row: Callable[[int], None] | None,
) -> Samples:
    count, channels, height, width = shape
    device = model.head.logits.bias.device
    row = _Row(model, torch.empty(count, channels, width, dtype=dtype, device=device), height, vectors, temperature)
    uniform = random_numbers(seeds, channels * height * width).to(device).view(count, height, width * channels)
    images = torch.empty(count, height, width * channels, dtype=torch.uint8, device=device)
    draw_row = _Replayed(row.draw) if device.type == "cuda" else row.draw
    for y in range(height):
        row.begin(y, uniform[:, y], known)
        draw_row()
        images[:, y] = row.levels
        if after_row:
            after_row(y + 1)
    return Samples(images.unflatten(2, (width, channels)).permute(0, 3, 1, 2).contiguous(), row.nats)


class _Row:
    """The row being drawn, on fixed memory: `draw` is the same operations on the same tensors for every row."""

    def __init__(
        self,
        model: AutoregressiveModel,
        like: Float[Tensor, "b c w"],
        height: int,
        vectors: Float[Tensor, "b d"] | None,
        temperature: float,
    ) -> None:
        count, channels, width = like.shape
        self._body, self._head = row_of(model, vectors, height, like), HeadRow(model.head, like)
        order = [(x, c) for x in range(width) for c in range(channels)]
        self._operations = [
            self._body.operations(x, c) + self._head.operations(self._body.features, x, c) for x, c in order
        ]
        self._inputs = [self._body.image.group(x, c) for x, c in order]
        every_level = torch.arange(model.levels, device=like.device).view(-1, 1, 1, 1).byte()
        self._scaled = scale_levels(every_level, model.levels, like.dtype)[:, 0, 0]
        self._uniform = like.new_empty(count, len(order), dtype=torch.float64)
        self._given: Bool[Tensor, "b n"] | None = None
        self._temperature, self._channels = temperature, channels
        self.levels = like.new_zeros(count, len(order), dtype=torch.int64)
        self.nats = like.new_zeros(count, dtype=torch.float64)

    def begin(self, y: int, uniform: Float64[Tensor, "b n"], known: Known | None) -> None:
        """Go to row y: what the rows above bring, its random numbers, and what of it is given."""
        self._body.begin(y)
        self._uniform.copy_(uniform)
        if known is not None:
            given = known.mask[:, y].repeat_interleave(self._channels, 1).to(uniform.device)
            self._given = given if self._given is None else self._given.copy_(given)
            self.levels.copy_(known.images[:, :, y].transpose(1, 2).flatten(1))

    def draw(self) -> None:
        """Draw the row to `levels` and add to `nats`; given sub-pixels of `levels` stay."""
        for place, operations in enumerate(self._operations):
            for operation in operations:
                operation()
            levels, nats = choose_levels(self._head.logits, self._uniform[:, place], self._temperature)
            if self._given is not None:
                levels = torch.where(self._given[:, place], self.levels[:, place], levels)
                nats = nats.masked_fill(self._given[:, place], 0.0)
            self.levels[:, place] = levels
            self._inputs[place].copy_(self._scaled[levels])
            self.nats += nats


class _Replayed:
    """A function on fixed CUDA memory: run once as it is, then captured as a CUDA graph and replayed."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function, self._ran = function, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self._ran:
            self._ran = True
            self._function()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._function()
        self._graph.replay()
