"""Where images come from: scikit-learn's digits, CIFAR-10's binary files, folders of class folders, npz archives."""

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.npz import read_npz

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
CIFAR10_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class SourceImage:
    """One labelled image, read when it is asked for."""

    name: str
    label: int
    load: Callable[[], UInt8[np.ndarray, "h w c"]]


@dataclass(frozen=True)
class Source:
    """A labelled set of images by split, the names of its classes, and the values that a sub-pixel takes."""

    classes: tuple[str, ...]
    splits: dict[str, list[SourceImage]]
    levels: int = 256


def open_source(data: Data) -> Source:
    """The images that `data.source` names, in a fixed order.

    Raises:
        UserError: the source isn't there or isn't laid out as data.source_format says.
    """
    if data.source_format == "digits":
        return _digits(data)
    if not data.source:
        raise UserError(
            f"data.source is empty: name the {data.source_format} folder or file to read with --data.source"
        )
    path = Path(data.source).expanduser()
    if not path.exists():
        raise UserError(f"data.source {data.source}: no such file or folder; correct the path")
    if data.source_format == "cifar10-binary":
        return _cifar10(data, path)
    return _npz(data, path) if data.source_format == "npz" else _class_folders(data, path)


def pixels_of(image: Image.Image, data: Data) -> UInt8[np.ndarray, "h w c"]:
    """The image in data.channels colours, brought to data.image_size as data.resize says.

    center-crop-box keeps the largest centred square. Where the margins can't be equal, the left or top one is
    (long - short) // 2, so the right or bottom side loses the extra pixel.
    """
    image = image.convert("L" if data.channels == 1 else "RGB")
    if data.resize == "center-crop-box":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if data.resize != "none":
        image = image.resize((data.image_size, data.image_size), Image.Resampling.BOX)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _in_memory(array: UInt8[np.ndarray, "h w c"]) -> Callable[[], UInt8[np.ndarray, "h w c"]]:
    return lambda: array


def _digits(data: Data) -> Source:
    """The test set of UCI's Optical Recognition of Handwritten Digits as scikit-learn ships it: levels 0 to 16."""
    from sklearn.datasets import load_digits  # only `prepare digits` needs scikit-learn's second of import

    digits = load_digits()
    arrays = digits.images.astype(np.uint8)[..., None]
    images = [
        SourceImage(f"digit{index:04d}", int(label), _in_memory(array))
        for index, (array, label) in enumerate(zip(arrays, digits.target, strict=True))
    ]
    return Source(tuple(str(name) for name in digits.target_names), _hold_out(data, images), levels=17)


def _hold_out(data: Data, images: list[SourceImage]) -> dict[str, list[SourceImage]]:
    """A seeded share of each class's images, or of whole classes, as val_split, the rest as train_split."""
    shuffled = list(images)
    random.Random(data.prepare_seed).shuffle(shuffled)
    by_label: dict[int, list[SourceImage]] = {}
    for image in shuffled:
        by_label.setdefault(image.label, []).append(image)
    if data.holdout == "classes":
        count = round(len(by_label) * data.holdout_fraction)
        labels = random.Random(data.prepare_seed).sample(sorted(by_label), count)
        held_out = {image.name for label in labels for image in by_label[label]}
    else:
        shares = [members[: round(len(members) * data.holdout_fraction)] for members in by_label.values()]
        held_out = {image.name for members in shares for image in members}
    if not 0 < len(held_out) < len(images):
        raise UserError(
            f"data.holdout_fraction {data.holdout_fraction} with data.holdout {data.holdout} holds out "
            f"{len(held_out)} of {len(images)} images, of {len(by_label)} classes: both splits need images; "
            "change one of the two fields"
        )
    return {
        data.train_split: [image for image in images if image.name not in held_out],
        data.val_split: [image for image in images if image.name in held_out],
    }


def _cifar10(data: Data, path: Path) -> Source:
    """CIFAR-10's binary version: a record is a label byte and 3,072 bytes, red, green and blue planes row by row."""
    _require_no_held_out_classes(data, path)
    files = _cifar10_files(path)
    wanted = [f"data_batch_{number}.bin" for number in range(1, 6)]
    missing = [name for name in [*wanted, "test_batch.bin", "batches.meta.txt"] if name not in files]
    if missing:
        raise UserError(
            f"data.source {path}: {missing[0]} is missing; give cifar-10-binary.tar.gz or its unpacked folder"
        )
    splits: dict[str, list[SourceImage]] = {}
    for split, names in ((data.train_split, wanted), (data.val_split, ["test_batch.bin"])):
        splits[split] = [image for name in names for image in _cifar10_images(path, name, files[name])]
    return Source(tuple(files["batches.meta.txt"].decode().split()), splits)


def _require_no_held_out_classes(data: Data, path: Path) -> None:
    """Refuse data.holdout classes for a source with splits of its own: its classes would be in both."""
    if data.holdout == "classes":
        raise UserError(
            f"data.holdout classes: data.source {path} has splits of its own, none of its classes are held out; "
            "set --data.holdout images"
        )


def _cifar10_files(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.rglob("*") if file.suffix in (".bin", ".txt")}
    try:
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.isfile()]
            return {Path(member.name).name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"data.source {path}: not a readable tar ({error}); download cifar-10-binary.tar.gz again"
        ) from error


def _cifar10_images(path: Path, name: str, content: bytes) -> Iterator[SourceImage]:
    if not content or len(content) % CIFAR10_RECORD:
        raise UserError(
            f"data.source {path}: {name} has {len(content)} bytes, not a multiple of a record's {CIFAR10_RECORD}; "
            "download cifar-10-binary.tar.gz again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR10_RECORD)
    for index, record in enumerate(records):
        if record[0] > 9:
            raise UserError(
                f"data.source {path}: {name} record {index} has label {record[0]}, not 0 to 9; download it again"
            )
        pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
        yield SourceImage(f"{Path(name).stem}-{index:05d}", int(record[0]), _in_memory(pixels))


def _class_folders(data: Data, path: Path) -> Source:
    """Folders train_split/CLASS/*.jpg and val_split/CLASS/*.jpg, or CLASS/*.jpg of which a share is held out."""
    if path.is_file():
        raise UserError(f"data.source {path}: a file; class-folders wants a folder of class folders")
    has_splits = (path / data.train_split).is_dir() and (path / data.val_split).is_dir()
    if has_splits:
        _require_no_held_out_classes(data, path)
    roots = {split: path / split for split in (data.train_split, data.val_split)} if has_splits else {"": path}
    classes = sorted({entry.name for root in roots.values() for entry in os.scandir(root) if entry.is_dir()})
    if not classes:
        raise UserError(
            f"data.source {path}: no class folders in it; put the images of each class into a folder of its name"
        )
    found = {
        split: [image for label, name in enumerate(classes) for image in _images_of_class(data, root, name, label)]
        for split, root in roots.items()
    }
    for split, images in found.items():
        if not images:
            raise UserError(
                f"data.source {roots[split]}: no images in its class folders; "
                f"known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
    return Source(tuple(classes), found if has_splits else _hold_out(data, found[""]))


def _images_of_class(data: Data, root: Path, name: str, label: int) -> Iterator[SourceImage]:
    for file in sorted((root / name).rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield SourceImage(file.relative_to(root).as_posix(), label, _from_file(data, file))


def _from_file(data: Data, file: Path) -> Callable[[], UInt8[np.ndarray, "h w c"]]:
    def load() -> UInt8[np.ndarray, "h w c"]:
        try:
            with Image.open(io.BytesIO(file.read_bytes())) as image:
                return pixels_of(image, data)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: can't be decoded as an image ({error}); repair or remove it") from error

    return load


def _npz(data: Data, path: Path) -> Source:
    """An npz of `images` and of one label each in `labels` or `subject`; a class is named by its label's number."""
    images, labels = read_npz(path)
    numbers, classes = np.unique(labels, return_inverse=True)
    found = [
        SourceImage(f"image{index:05d}", int(label), _from_array(data, array))
        for index, (array, label) in enumerate(zip(images, classes, strict=True))
    ]
    return Source(tuple(str(number) for number in numbers), _hold_out(data, found))


def _from_array(data: Data, array: UInt8[np.ndarray, "h w *c"]) -> Callable[[], UInt8[np.ndarray, "h w c"]]:
    # Pillow knows grey images as (height, width) only.
    return lambda: pixels_of(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array), data)
