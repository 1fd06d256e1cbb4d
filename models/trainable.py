"""What the training loop asks of a model, whatever it learns."""

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float64, Int, UInt8
from torch import Tensor, nn

Measure = Literal["nats", "squared_error", "triplet_loss"]


class TrainableModel(nn.Module, ABC):
    """A module of images (and labels) whose losses, one an image, are summed, minimised and reported.

    `measure` says what the losses are, `reads_labels` whether `forward` takes the labels beside the images.
    """

    measure: Measure
    reads_labels: bool = False

    @abstractmethod
    def losses(
        self, outputs: Tensor, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> Float64[Tensor, " b"]:
        """The loss of each image from what `forward` gave."""

    @abstractmethod
    def flops(self, height: int, width: int) -> int:
        """Floating-point operations of one image forward, convolutions and matrix products; training takes thrice."""


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of the model; every one of them counts, as nothing is masked."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
