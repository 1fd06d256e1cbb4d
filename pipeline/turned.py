"""Turned images among those that a model is trained on, told apart by a number, so that few images make many.

Source: Jun et al., Distribution Augmentation for Generative Modeling, ICML 2020. A model that is told how an image was
turned learns the density of turned ones beside that of others, and is measured and drawn from as if none was turned.
"""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


def kinds_of_turns(channels: int) -> int:
    """How many ways `with_turns` has for images of so many colours."""
    return 5 if channels > 1 else 4


def with_turns(images: UInt8[Tensor, "b c s s"], share: float) -> tuple[UInt8[Tensor, "b c s s"], Int[Tensor, " b"]]:
    """The images, a share of them turned in a way from torch's random numbers, and the number of each one's way.

    0 is as it was; 1, 2 and 3 by as many quarters; 4 transposed; 5 with red and blue exchanged, if it has colours.
    """
    count, channels = images.shape[:2]
    turns = torch.randint(1, kinds_of_turns(channels) + 1, (count,), device=images.device)
    turns = torch.where(torch.rand(count, device=images.device) < share, turns, 0)
    ways = [images, *(images.rot90(quarters, (2, 3)) for quarters in (1, 2, 3)), images.mT, images.flip(1)]
    every = torch.stack(ways, 1)
    turned = every[torch.arange(count, device=images.device), turns]
    return turned.contiguous(memory_format=torch.channels_last), turns
