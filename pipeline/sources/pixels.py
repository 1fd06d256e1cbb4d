"""From a file's bytes or an array to the pixels of a record: decoding, colours, and the declared resizing."""

import io
import struct
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.config import Data
from pipeline.sources.source import UnreadableImageError

# Beside its own errors Pillow lets those of its parsers through, e.g. SyntaxError of a broken PNG.
UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
)


def decoded(content: bytes, name: str, data: Data) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image file, in data.channels colours and at data.image_size as data.resize says.

    The format is read from the bytes, whatever the name says; CMYK is converted, metadata (EXIF) is not looked at.

    Raises:
        UnreadableImageError: the bytes are no image, or not all of one, or have more than 8 bits a colour, which Pillow
            would cut off at 255.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # Pillow looks for the resolution in broken metadata
            with Image.open(io.BytesIO(content)) as image:
                if image.mode.startswith(("I", "F")):
                    raise UnreadableImageError(
                        f"{name}: more than 8 bits a colour (Pillow's mode {image.mode}); scale it to 0..255 and save "
                        "it in 8 bits, or allow some such images by --data.max-unreadable"
                    )
                return pixels_of(image, data)
    except UNDECODABLE as error:
        raise UnreadableImageError(
            f"{name}: can't be decoded as an image ({error}); repair or remove it, or allow some such images by "
            "--data.max-unreadable"
        ) from error


def from_array(array: UInt8[np.ndarray, "height width *colours"], data: Data) -> UInt8[np.ndarray, "h w c"]:
    """The same for pixels that are there already."""
    # Pillow knows grey images as (height, width) only.
    return pixels_of(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array), data)


def pixels_of(image: Image.Image, data: Data) -> UInt8[np.ndarray, "h w c"]:
    """The image in data.channels colours, brought to data.image_size as data.resize says.

    box takes the mean of the source pixels under each new one, as Pillow's BOX does (arXiv 1707.08819); lanczos is
    Pillow's LANCZOS; both take the whole image, whatever its aspect ratio. center-crop-box keeps the largest centred
    square. Where the margins can't be equal, the left or top one is (long - short) // 2, so the right or bottom side
    loses the extra pixel.
    """
    image = image.convert("L" if data.channels == 1 else "RGB")
    if data.resize == "center-crop-box":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if data.resize != "none":
        kernel = Image.Resampling.LANCZOS if data.resize == "lanczos" else Image.Resampling.BOX
        image = image.resize((data.image_size, data.image_size), kernel)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
