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
    pixels = stretched(images.cpu().permute(0, 2, 3, 1).numpy(), levels)
    factor = max(1, -(-SMALLEST_SIDE // pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = pixels.shape[1] + 2, pixels.shape[2] + 2
    rows = -(-len(pixels) // columns)
    canvas = np.full((rows * height, columns * width, pixels.shape[3]), 128, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * height, index % columns * width
        canvas[top + 1 : top + height - 1, left + 1 : left + width - 1] = image
    return _png(canvas)


def image_png(image: UInt8[np.ndarray, "c h w"], levels: int) -> bytes:
    """A PNG of one image at its own size, levels stretched to 0..255."""
    return _png(stretched(image.transpose(1, 2, 0), levels))


def stretched(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Levels 0 .. levels-1 as the nearest bytes of 0..255."""
    return np.round(pixels * (255.0 / (levels - 1))).astype(np.uint8)


def _png(canvas: UInt8[np.ndarray, "h w c"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else canvas).save(buffer, "PNG")
    return buffer.getvalue()
