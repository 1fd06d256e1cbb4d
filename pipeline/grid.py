"""Many small images as one picture that a person can look at."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

SMALLEST_SIDE = 40
"""Pixels that an image takes in the grid at least, each of its own pixels a whole number of them."""


def grid_png(images: UInt8[Tensor, "b c h w"], levels: int, columns: int) -> bytes:
    """A PNG of the images in rows of `columns`, levels stretched to 0..255, with a thin grey line between them."""
    pixels = np.round(images.cpu().permute(0, 2, 3, 1).numpy() * (255.0 / (levels - 1))).astype(np.uint8)
    factor = max(1, -(-SMALLEST_SIDE // pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = pixels.shape[1] + 2, pixels.shape[2] + 2
    rows = -(-len(pixels) // columns)
    canvas = np.full((rows * height, columns * width, pixels.shape[3]), 128, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * height, index % columns * width
        canvas[top + 1 : top + height - 1, left + 1 : left + width - 1] = image
    buffer = io.BytesIO()
    Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else canvas).save(buffer, "PNG")
    return buffer.getvalue()
