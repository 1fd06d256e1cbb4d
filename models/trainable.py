"""What the training loop asks of a model, whatever it learns."""

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor, nn

from models.likelihood import sum_by_image

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


class DensityModel(TrainableModel):
    """A model of p(image | what it is given): its losses are nats, which it can tell of each sub-pixel."""

    measure = "nats"

    @abstractmethod
    def nats(self, outputs: Tensor, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Negative log-likelihood of each sub-pixel given all before it, in nats, from what `forward` gave."""

    def losses(
        self, outputs: Tensor, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> Float64[Tensor, " b"]:
        """Negative log-likelihood of each image in nats; what is given is in the outputs already."""
        return sum_by_image(self.nats(outputs, images))


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of the model; every one of them counts, as nothing is masked."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
