"""Folders of image files: one for each class, or without labels."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.pixels import decoded
from pipeline.sources.source import (
    IMAGE_SUFFIXES,
    Source,
    SourceImage,
    hold_out,
    lone_split,
    require_no_held_out_classes,
)
from pipeline.storage import files_below


def open_class_folders(data: Data, path: Path) -> Source:
    """Folders train_split/CLASS/*.jpg and val_split/CLASS/*.jpg, or CLASS/*.jpg of which a share is held out."""
    # A class may have a split's name, as CIFAR-100's train: its images lie in its folder itself.
    roots = _roots(data, path, lambda split: not any(_is_image(file) for file in (path / split).iterdir()))
    if "" not in roots:
        require_no_held_out_classes(data, path)
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
            lies_flat = any(_is_image(file) for file in roots[split].iterdir())
            remedy = (
                "sort its images into a folder for each class, or set --data.source-format ilsvrc2012 for ImageNet's"
                if lies_flat
                else f"known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
            raise UserError(f"data.source {roots[split]}: no images in its class folders; {remedy}")
    labels = {image.label for images in found.values() for image in images}
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if empty:
        raise UserError(f"data.source {path}: no images in the class folders {', '.join(empty)}; fill or remove them")
    return Source(tuple(classes), hold_out(data, found[""]) if "" in found else found)


def open_folder(data: Data, path: Path) -> Source:
    """A folder of images in whatever subfolders, without labels: one class; its split folders if it has both."""
    require_no_held_out_classes(data, path)
    roots = _roots(
        data,
        path,
        lambda split: any(not image.name.startswith(f"{split}/") for image in _images_below(data, path, path, 0)),
    )
    found = {split: list(_images_below(data, root, root, 0)) for split, root in roots.items()}
    for split, images in found.items():
        if not images:
            raise UserError(
                f"data.source {roots[split]}: no images in it; known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
    return Source(("image",), hold_out(data, found[""]) if "" in found else found)


def _roots(data: Data, path: Path, is_split: Callable[[str], bool]) -> dict[str, Path]:
    """The folders of the two splits; without both all of it as "", of which a share is held out.

    Args:
        is_split: whether the only folder with the name of one holds that split, and not images like any other.
    """
    there = {split: path / split for split in (data.train_split, data.val_split) if (path / split).is_dir()}
    if len(there) == 2:
        return there
    for split in there:
        if is_split(split):
            raise lone_split(data, path, split)
    return {"": path}


def image_files(folder: Path) -> Iterator[Path]:
    """Image files in whatever subfolders; hidden ones are left by other programs, some with copies of the images."""
    for file in files_below(folder):
        if _is_image(file) and not any(part.startswith(".") for part in file.relative_to(folder).parent.parts):
            yield file


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _images_below(data: Data, root: Path, folder: Path, label: int) -> Iterator[SourceImage]:
    for file in image_files(folder):
        yield SourceImage(file.relative_to(root).as_posix(), label, functools.partial(from_file, str(file), data))


def from_file(file: str, data: Data) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a file, as `pipeline.sources.pixels.decoded` gives and refuses them."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: can't be read ({error.strerror}); data.source must be readable by every node of the cluster"
        ) from error
    return decoded(content, file, data)
