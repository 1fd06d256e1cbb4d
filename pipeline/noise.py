"""Random levels among what a model reads in training, so that one level drawn wrongly does not ruin all after it."""

import torch
from jaxtyping import UInt8
from torch import Tensor


def with_random_levels(
    images: UInt8[Tensor, "b c h w"], levels: int, *, noisy_images: float, noisy_levels: float
) -> UInt8[Tensor, "b c h w"]:
    """The images, a share of them with a share of their levels replaced by uniform ones of 0 to levels-1.

    Drawn from torch's random numbers. Transformers over image tokens are trained so (`pkeep` in the code of arXiv
    2012.09841), there in all images; in a tenth of them it costs the likelihood of clean images less.
    """
    noisy = torch.rand(len(images), 1, 1, 1, device=images.device) < noisy_images
    replaced = torch.rand_like(images, dtype=torch.float32) < noisy_levels
    return torch.where(noisy & replaced, torch.randint_like(images, levels), images)
