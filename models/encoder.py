"""Images to vectors and vectors to images: convolutions with max-pooling, and transposed convolutions back.

Source: Masci et al., Stacked Convolutional Auto-Encoders for Hierarchical Feature Extraction, ICANN 2011.
"""

import itertools
import math
from typing import Literal

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.conditioning import SEED_SIZE, doublings
from models.scaling import scale_levels


class ConvEncoder(nn.Module):
    """Blocks of a 3x3 convolution, tanh or ReLU and 2x2 max-pooling down to 4 x 4 or less, then a linear map.

    The filters double in each block. Parameters, with C colours, f filters, k blocks, s the last side and d numbers:
    f (9C + 1), sum over blocks j from 1 of 2^j f (9 x 2^(j-1) f + 1), and d (2^(k-1) f s^2 + 1).

    Args:
        channels: colours of a pixel.
        levels: values that a sub-pixel takes.
        image_size: height and width of the images in pixels, at least 5.
        num_filters: filters f of the first block.
        code_size: numbers d of the vector.
        activation: "tanh" as in Masci et al., or "relu".

    Raises:
        ValueError: the images are too small for a block.
    """

    def __init__(
        self,
        *,
        channels: int,
        levels: int,
        image_size: int,
        num_filters: int,
        code_size: int,
        activation: Literal["tanh", "relu"],
    ) -> None:
        super().__init__()
        blocks = doublings(image_size)
        if not blocks:
            raise ValueError(f"image_size must be above {SEED_SIZE} for an encoder, got {image_size}")
        self.levels, self.code_size = levels, code_size
        widths = [channels, *(num_filters * 2**index for index in range(blocks))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.activation = nn.Tanh() if activation == "tanh" else nn.ReLU()
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.code = nn.Linear(widths[-1] * math.ceil(image_size / 2**blocks) ** 2, code_size)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The vector of each image."""
        features = scale_levels(images, self.levels, self.code.weight.dtype)
        for convolution in self.convolutions:
            features = self.pool(self.activation(convolution(features)))
        code: Tensor = self.code(features.flatten(1))
        return code

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations an image: 18 x in x out filters at each position of a block, 2 x the linear map."""
        total = 2 * self.code.weight.numel()
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            total += 2 * convolution.weight.numel() * height * width
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        return total


class ConvDecoder(nn.Module):
    """A linear map to 4 x 4, transposed 4x4 convolutions of stride 2 with ReLU, a 3x3 convolution, a sigmoid.

    It mirrors `ConvEncoder`: the filters halve in each block. Intensities are 0 to 1. Parameters, with d numbers, C
    colours, f filters of the last block and k blocks: 2^k f 16 (d + 1), the sum over blocks j from 1 to k of
    2^(j-1) f (16 x 2^j f + 1), and C (9f + 1).
    """

    def __init__(self, *, channels: int, image_size: int, num_filters: int, code_size: int) -> None:
        super().__init__()
        blocks = doublings(image_size)
        self.image_size = image_size
        widths = [num_filters * 2**index for index in range(blocks, -1, -1)]
        self.widest = widths[0]
        self.seed = nn.Linear(code_size, widths[0] * SEED_SIZE**2)
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.colours = nn.Conv2d(num_filters, channels, 3, padding=1)

    def forward(self, code: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Intensities from 0 to 1."""
        features = self.seed(code).view(-1, self.widest, SEED_SIZE, SEED_SIZE).relu()
        for deconvolution in self.deconvolutions:
            features = deconvolution(features).relu()
        intensities: Tensor = self.colours(features).sigmoid()
        return intensities[:, :, : self.image_size, : self.image_size]

    def flops(self) -> int:
        """Floating-point operations an image: 32 x in x out filters at each position before a block, 2 x the rest."""
        total, side = 2 * self.seed.weight.numel(), SEED_SIZE
        for deconvolution in self.deconvolutions:
            assert isinstance(deconvolution, nn.ConvTranspose2d)
            total += 2 * deconvolution.weight.numel() * side * side
            side *= 2
        return total + 2 * self.colours.weight.numel() * side * side
