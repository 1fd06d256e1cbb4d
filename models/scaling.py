"""Levels of images as the numbers that networks read."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def scale_levels(images: UInt8[Tensor, "b c h w"], levels: int, dtype: torch.dtype) -> Float[Tensor, "b c h w"]:
    """Levels 0 .. levels-1 as numbers from -1 to 1."""
    return images.to(dtype) * (2.0 / (levels - 1)) - 1.0
