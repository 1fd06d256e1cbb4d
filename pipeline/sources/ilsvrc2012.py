"""ILSVRC2012 as it is handed out: two tars and the development kit, or unpacked, as Kaggle has it."""

import csv
import functools
import io
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.folders import from_file, image_files
from pipeline.sources.pixels import decoded
from pipeline.sources.source import Source, SourceImage, require_no_held_out_classes

TRAIN, VALIDATION, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
LABELS, TRUTH = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt"
UNPACKED = "ILSVRC/Data/CLS-LOC"
WNID = re.compile(r"n\d{8}")
SECONDS_BETWEEN_LINES = 20.0

Load = Callable[[], UInt8[np.ndarray, "h w c"]]


def open_ilsvrc2012(data: Data, path: Path) -> Source:
    """The folder of the two tars, or of the unpacked train/WNID/ and val/, and of what has the labels of val.

    Classes are the WordNet ids in their sorted order. Images are read where they lie, in a tar at their offset in it.
    """
    require_no_held_out_classes(data, path)
    root = _unpacked(path)
    train, validation = _in_folders(data, root) if root else _in_tars(data, path)
    classes = tuple(sorted({wnid for wnid, *_ in train}))
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    wnid_of = _validation_labels(path)
    for name, _ in validation:
        if wnid_of.get(Path(name).stem) not in label_of:
            raise UserError(
                f"data.source {path}: val holds {name}, whose class is {wnid_of.get(Path(name).stem)} by the "
                "validation labels, and not one of the training classes; use the labels of the same data set"
            )
    return Source(
        classes,
        {
            data.train_split: [SourceImage(f"{wnid}/{name}", label_of[wnid], load) for wnid, name, load in train],
            data.val_split: [SourceImage(name, label_of[wnid_of[Path(name).stem]], load) for name, load in validation],
        },
    )


def _unpacked(path: Path) -> Path | None:
    """The folder of train/ and val/, where there are no tars."""
    if any((path / name).is_file() for name in (TRAIN, VALIDATION)):
        return None
    root = path / UNPACKED if (path / UNPACKED).is_dir() else path
    return root if all((root / split).is_dir() for split in ("train", "val")) else None


def _in_folders(data: Data, root: Path) -> tuple[list[tuple[str, str, Load]], list[tuple[str, Load]]]:
    """WordNet id, name and reading of the training images, name and reading of the validation images."""
    found = {split: list(image_files(root / split)) for split in ("train", "val")}
    for split, files in found.items():
        if not files:
            raise UserError(f"data.source {root / split}: no images in it; unpack the data set again")
    for file in found["train"]:
        if not WNID.fullmatch(file.parent.name):
            raise UserError(f"data.source {file}: not in a folder named by a WordNet id; unpack the data set again")
    train = [(file.parent.name, file.name, _whole(file, data)) for file in found["train"]]
    return train, [(file.name, _whole(file, data)) for file in found["val"]]


def _in_tars(data: Data, path: Path) -> tuple[list[tuple[str, str, Load]], list[tuple[str, Load]]]:
    """The same of the tars."""
    for name in (TRAIN, VALIDATION):
        if not (path / name).is_file():
            raise UserError(
                f"data.source {path}: {name} is missing; give the folder that it was downloaded to, or that of the "
                f"unpacked {UNPACKED}"
            )
    with (path / VALIDATION).open("rb") as file:
        validation = [
            (Path(name).name, _at(path / VALIDATION, start, size, data))
            for name, start, size in _members(path / VALIDATION, file)
        ]
    train = [
        (wnid, Path(name).name, _at(path / TRAIN, start, size, data))
        for wnid, name, start, size in _training_images(path / TRAIN)
    ]
    return train, validation


def _whole(file: Path, data: Data) -> Load:
    return functools.partial(from_file, str(file), data)


def _at(path: Path, start: int, size: int, data: Data) -> Load:
    return functools.partial(_from_part, str(path), start, size, data)


def _from_part(path: str, start: int, size: int, data: Data) -> UInt8[np.ndarray, "h w c"]:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}); data.source must be readable by every node of the cluster"
        ) from error
    return decoded(content, f"{path} at byte {start:,}", data)


def _training_images(path: Path) -> Iterator[tuple[str, str, int, int]]:
    """WordNet id, name, offset in the outer tar and size of each training image."""
    total, told = path.stat().st_size, time.monotonic()
    with path.open("rb") as file:
        for outer_name, outer_start, outer_size in _members(path, file):
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                print(f"{path.name}: {outer_start / total:.0%} of its bytes searched for images", flush=True)
                told = time.monotonic()
            wnid = Path(outer_name).stem
            if not WNID.fullmatch(wnid):
                raise UserError(f"{path}: holds {outer_name}, not a tar named by a WordNet id; download it again")
            with path.open("rb") as inner:
                inner.seek(outer_start)
                for name, start, size in _members(path, inner):
                    if start + size > outer_start + outer_size:
                        raise UserError(f"{path}: {outer_name} ends within {name}; download it again")
                    yield wnid, name, start, size


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of the tar that begins where the file stands; only headers are read."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole tar ({error}); download it again") from error


def _validation_labels(path: Path) -> dict[str, str]:
    """The WordNet id of each validation image, by its name without an ending."""
    if (path / LABELS).is_file():
        with (path / LABELS).open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 2 and WNID.match(row[1])]
        return {name: WNID.match(where).group() for name, where in rows}  # type: ignore[union-attr]
    if not (path / KIT).is_file():
        raise UserError(
            f"data.source {path}: neither {KIT} nor {LABELS} is there for the labels of val; lay one of them into it, "
            "or sort val into a folder for each class and read it as --data.source-format class-folders"
        )
    return _labels_of_kit(path / KIT)


def _labels_of_kit(path: Path) -> dict[str, str]:
    from scipy.io import loadmat  # only this source needs scipy's second of import

    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if Path(member.name).name in ("meta.mat", TRUTH):
                    files[Path(member.name).name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable tar ({error}); download it again") from error
    if len(files) != 2:
        raise UserError(f"{path}: meta.mat or {TRUTH} is missing; download it again")
    synsets = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True, struct_as_record=True)["synsets"]
    wnid_of = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    numbers = [int(line) for line in files[TRUTH].split()]
    return {f"ILSVRC2012_val_{index:08d}": wnid_of[number] for index, number in enumerate(numbers, start=1)}
