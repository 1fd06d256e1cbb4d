"""p(image | condition) as a product over sub-pixels in raster order, R before G before B: a body and a head."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from models.scaling import scale_levels
from models.softmax_head import SoftmaxHead
from models.trainable import DensityModel

Condition = Int[Tensor, " b"] | Float[Tensor, "b d"]
"""A label or a vector h for each image."""


@runtime_checkable
class Body(Protocol):
    """Causal features: colour group g of a position depends on what is before sub-pixel g of that position.

    `channels` colours; `num_features` features in as many groups; `condition_size` numbers of h, 0 for none;
    `condition_dropout` is the share of images trained without h; `turn_kinds` numbers after h say in which of as many
    ways a training image was turned.
    """

    channels: int
    num_features: int
    condition_size: int
    condition_dropout: float
    turn_kinds: int

    def __call__(
        self, scaled: Float[Tensor, "b c h w"], condition: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b f h w"]: ...

    def flops(self, height: int, width: int) -> int: ...


class AutoregressiveModel(DensityModel):
    """A body, and a head that turns its features into the logits of every level of every sub-pixel.

    Args:
        body: GatedPixelCNN, PixelCNN or PixelRNN.
        head: what stands on its features.
        num_classes: labels to condition on, each a one-hot h; 0 where the condition is a vector, or there is none.

    Raises:
        ValueError: the body's condition isn't of num_classes numbers.
    """

    def __init__(self, *, body: Body, head: SoftmaxHead, num_classes: int = 0) -> None:
        super().__init__()
        if num_classes and num_classes != body.condition_size:
            raise ValueError(f"num_classes is {num_classes}, the body's condition_size {body.condition_size}")
        self.body, self.head, self.num_classes = body, head, num_classes
        self.reads_labels = num_classes > 0

    @property
    def channels(self) -> int:
        """Colours of a pixel."""
        return self.body.channels

    @property
    def levels(self) -> int:
        """Values that a sub-pixel takes."""
        return self.head.levels

    def forward(
        self,
        images: UInt8[Tensor, "b c h w"],
        condition: Condition | None = None,
        turns: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w levels"]:
        """Logits of each sub-pixel given all before it; those of a position never depend on it or on later ones.

        Raises:
            ValueError: condition or turns don't fit the model; see `vectors`.
        """
        return self.logits_of_scaled(self.scale(images), self.vectors(condition, turns))

    def nats(
        self, outputs: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Negative log-likelihood of each sub-pixel given all before it and the condition, in nats, from the logits."""
        return self.head.nats(outputs, images)

    def scale(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Levels 0 .. levels-1 as numbers from -1 to 1 in the parameters' dtype."""
        return scale_levels(images, self.levels, self.head.logits.bias.dtype)

    def vectors(
        self, condition: Condition | None, turns: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"] | None:
        """The condition as vectors h, labels one-hot, and after it how each image was turned: 0 where it wasn't.

        Raises:
            ValueError: a condition for a model without one, none for a model always trained with one, or another size;
                turns for a model that is told none.
        """
        size, kinds, dtype = self.body.condition_size, self.body.turn_kinds, self.head.logits.bias.dtype
        if turns is not None and not kinds:
            raise ValueError("a model that isn't told how images were turned got turns")
        if condition is None:
            if size and not self.body.condition_dropout:
                raise ValueError(f"a model conditioned on {size} numbers, never trained without, got no condition")
            if turns is None:
                return None
            condition = torch.zeros(len(turns), size, dtype=dtype, device=turns.device)
        if self.num_classes and condition.ndim == 1 and not condition.is_floating_point():
            condition = functional.one_hot(condition.long(), self.num_classes)
        if condition.ndim != 2 or condition.shape[1] != size:
            raise ValueError(f"a model conditioned on {size} numbers got a condition of shape {list(condition.shape)}")
        if not kinds:
            return condition.to(dtype)
        if turns is None:
            turns = torch.zeros(len(condition), dtype=torch.int64, device=condition.device)
        told = functional.one_hot(turns, kinds + 1)[:, 1:]
        return torch.cat([condition.to(dtype), told.to(dtype)], 1)

    def logits_of_scaled(
        self, scaled: Float[Tensor, "b c h w"], vectors: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b c h w levels"]:
        """`forward` from scaled images and vectors h, so that a gradient by them can be taken."""
        logits: Tensor = self.head(self.body(scaled, vectors))
        return logits

    def flops(self, height: int, width: int) -> int:
        return self.body.flops(height, width) + self.head.flops(height, width)
