"""Folders of image files: one for each class, or without labels."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.pixels import decoded
from pipeline.sources.source import IMAGE_SUFFIXES, Source, SourceImage, hold_out, require_no_held_out_classes


def open_class_folders(data: Data, path: Path) -> Source:
    """Folders train_split/CLASS/*.jpg and val_split/CLASS/*.jpg, or CLASS/*.jpg of which a share is held out."""
    has_splits = (path / data.train_split).is_dir() and (path / data.val_split).is_dir()
    if has_splits:
        require_no_held_out_classes(data, path)
    roots = {split: path / split for split in (data.train_split, data.val_split)} if has_splits else {"": path}
    entries = [entry for root in roots.values() for entry in os.scandir(root)]
    classes = sorted({entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")})
    if not classes:
        raise UserError(
            f"data.source {path}: no class folders in it; put the images of each class into a folder of its name"
        )
    found = {
        split: [image for label, name in enumerate(classes) for image in _images_below(data, root, root / name, label)]
        for split, root in roots.items()
    }
    for split, images in found.items():
        if not images:
            raise UserError(
                f"data.source {roots[split]}: no images in its class folders; "
                f"known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
    labels = {image.label for images in found.values() for image in images}
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if empty:
        raise UserError(f"data.source {path}: no images in the class folders {', '.join(empty)}; fill or remove them")
    return Source(tuple(classes), found if has_splits else hold_out(data, found[""]))


def open_folder(data: Data, path: Path) -> Source:
    """A folder of images in whatever subfolders, without labels: one class; its split folders if it has both."""
    require_no_held_out_classes(data, path)
    has_splits = (path / data.train_split).is_dir() and (path / data.val_split).is_dir()
    roots = {split: path / split for split in (data.train_split, data.val_split)} if has_splits else {"": path}
    found = {split: list(_images_below(data, root, root, 0)) for split, root in roots.items()}
    for split, images in found.items():
        if not images:
            raise UserError(
                f"data.source {roots[split]}: no images in it; known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
    return Source(("image",), found if has_splits else hold_out(data, found[""]))


def _images_below(data: Data, root: Path, folder: Path, label: int) -> Iterator[SourceImage]:
    """Image files in whatever subfolders; hidden ones are left by other programs, some with copies of the images."""
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(root)
        if file.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in inner.parts):
            load = functools.partial(_from_file, str(file), data)
            yield SourceImage(inner.as_posix(), label, load)


def _from_file(file: str, data: Data) -> UInt8[np.ndarray, "h w c"]:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: can't be read ({error.strerror}); data.source must be readable by every node of the cluster"
        ) from error
    return decoded(content, file, data)
