"""Log-likelihood of images: nats as the model counts them, bits/dim as papers quote them."""

import math

from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional


def nats_of_images(logits: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Negative log-likelihood of each image in nats: cross entropy in float32 or better, summed in float64."""
    by_position = logits.permute(0, 2, 3, 1, 4)
    wide = by_position if by_position.dtype.itemsize >= 4 else by_position.float()
    nats = functional.cross_entropy(wide.flatten(0, 3), images.permute(0, 2, 3, 1).flatten().long(), reduction="none")
    return nats.view(len(images), -1).double().sum(1)


def bits_per_dim(nats: float, num_images: int, dims: int) -> float:
    """Bits a sub-pixel from the sum of nats over `num_images` images of `dims` sub-pixels each.

    Raises:
        ValueError: there are no images or no dims.
    """
    if num_images <= 0 or dims <= 0:
        raise ValueError(f"bits/dim needs images and dims above 0, got {num_images} and {dims}")
    return nats / (math.log(2.0) * num_images * dims)
