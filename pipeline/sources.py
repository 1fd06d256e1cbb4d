"""Where images come from: scikit-learn's digits, CIFAR-10's binary files, folders of class folders."""

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
    """A labelled set of images by split, and the names of its classes."""

    classes: tuple[str, ...]
    splits: dict[str, list[SourceImage]]


def open_source(data: Data) -> Source:
    """The images that `data.source` names, in a fixed order.

    Raises:
        UserError: the source isn't there or isn't laid out as data.source_format says.
    """
    if data.source_format == "digits":
        return _digits(data)
    if not data.source:
        raise UserError(
            f"data.source is empty: name the {data.source_format} folder or tar.gz to read with --data.source"
        )
    path = Path(data.source).expanduser()
    if not path.exists():
        raise UserError(f"data.source {data.source}: no such file or folder; correct the path")
    return _cifar10(data, path) if data.source_format == "cifar10-binary" else _class_folders(data, path)


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
    return Source(tuple(str(name) for name in digits.target_names), _hold_out(data, images))


def _hold_out(data: Data, images: list[SourceImage]) -> dict[str, list[SourceImage]]:
    """A seeded share of each class's images as val_split, the rest as train_split."""
    shuffled = list(images)
    random.Random(data.prepare_seed).shuffle(shuffled)
    by_label: dict[int, list[SourceImage]] = {}
    for image in shuffled:
        by_label.setdefault(image.label, []).append(image)
    held_out = {
        image.name for members in by_label.values() for image in members[: round(len(members) * data.holdout_fraction)]
    }
    return {
        data.train_split: [image for image in images if image.name not in held_out],
        data.val_split: [image for image in images if image.name in held_out],
    }


def _cifar10(data: Data, path: Path) -> Source:
    """CIFAR-10's binary version: a record is a label byte and 3,072 bytes, red, green and blue planes row by row."""
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
            with Image.open(io.BytesIO(file.read_bytes())) as opened:
                image = opened.convert("L" if data.channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: can't be decoded as an image ({error}); repair or remove it") from error
        size = (data.image_size, data.image_size)
        if data.resize == "box" and image.size != size:
            image = image.resize(size, Image.Resampling.BOX)
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array

    return load
