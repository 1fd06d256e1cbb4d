"""Labelled images in one npz archive: `images` and, as `labels` or `subject`, a number for each of them."""

import functools
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.pixels import from_array
from pipeline.sources.source import Source, SourceImage, hold_out


def open_npz(data: Data, path: Path) -> Source:
    """An npz of `images` and of one label each in `labels` or `subject`; a class is named by its label's number."""
    images, labels = read_npz(path)
    numbers, classes = np.unique(labels, return_inverse=True)
    found = [
        SourceImage(f"image{index:05d}", int(label), functools.partial(from_array, array, data))
        for index, (array, label) in enumerate(zip(images, classes, strict=True))
    ]
    return Source(tuple(str(number) for number in numbers), hold_out(data, found))


def read_npz(path: Path) -> tuple[UInt8[np.ndarray, "n h w *c"], Integer[np.ndarray, " n"]]:
    """Images, grey ones with or without an axis of one colour, and their labels.

    Pickled objects are refused, as reading them runs what they contain.

    Raises:
        UserError: the file can't be read, or its arrays aren't labelled images.
    """
    try:
        # A zip is asked for, as np.load takes other files for something else before it refuses them.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            name = _label_name(path, archive.files)
            images, labels = np.asarray(archive["images"]), np.asarray(archive[name])
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"data.source {path}: not a readable npz of plain arrays ({error}); write it again by numpy.savez"
        ) from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise UserError(
            f"data.source {path}: images is {images.dtype} of shape {images.shape}; make it uint8 of shape (N, H, W), "
            "(N, H, W, 1) or (N, H, W, 3)"
        )
    if not images.size:
        raise UserError(f"data.source {path}: images of shape {images.shape} has no pixels; write at least one image")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise UserError(
            f"data.source {path}: {name} is {labels.dtype} of shape {labels.shape}; make it integers of shape (N,)"
        )
    if len(images) != len(labels):
        raise UserError(
            f"data.source {path}: {len(images)} images but {len(labels)} numbers in {name}; write one for each image"
        )
    return images, labels


def _label_name(path: Path, names: list[str]) -> str:
    found = [name for name in ("labels", "subject") if name in names]
    if "images" not in names or len(found) != 1:
        raise UserError(
            f"data.source {path}: holds {', '.join(names) or 'no arrays'}; write images and either labels or subject "
            "by numpy.savez"
        )
    return found[0]
