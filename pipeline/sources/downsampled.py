"""Downsampled ImageNet as arXiv 1707.08819 hands it out: batches of flat images and labels from 1, pickled or npz."""

import functools
import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.pixels import from_array
from pipeline.sources.source import Source, SourceImage, require_no_held_out_classes

TRAIN_NAME = re.compile(r"train_data(_batch_\d+)?(\.npz)?")
VALIDATION_NAME = re.compile(r"val_data(\.npz)?")
ARRAY_MAKERS = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


def open_downsampled(data: Data, path: Path) -> Source:
    """A folder of train_data_batch_1 .. 10 (or train_data) and val_data, each with or without .npz.

    The arrays of each file are laid into a scratch file on this machine's disk, so one batch at a time is in memory.
    """
    require_no_held_out_classes(data, path)
    splits: dict[str, list[SourceImage]] = {}
    for split, pattern in ((data.train_split, TRAIN_NAME), (data.val_split, VALIDATION_NAME)):
        files = sorted((file for file in path.iterdir() if pattern.fullmatch(file.name)), key=_number)
        if not files:
            wanted = "train_data_batch_1" if split == data.train_split else "val_data"
            raise UserError(f"data.source {path}: {wanted} is missing; give the folder of the unpacked batches")
        splits[split] = [image for file in files for image in _images(data, file)]
    return Source(tuple(str(number) for number in range(1, data.num_classes + 1)), splits)


def _number(file: Path) -> int:
    found = re.search(r"\d+", file.name)
    return int(found.group()) if found else 0


def _images(data: Data, file: Path) -> list[SourceImage]:
    content = _npz_batch(file) if file.suffix == ".npz" else _pickled_batch(file)
    flat, labels = np.asarray(content.get("data")), np.asarray(content.get("labels"))
    side = round((flat.shape[-1] / 3) ** 0.5) if flat.ndim == 2 else 0
    if flat.dtype != np.uint8 or not side or flat.shape[1] != 3 * side * side or labels.shape != flat.shape[:1]:
        raise UserError(
            f"{file}: data is {flat.dtype} of shape {flat.shape} and labels are of shape {labels.shape}; both are "
            "wanted as uint8 (N, 3*S*S) and (N,): download it again"
        )
    if labels.min() < 1 or labels.max() > data.num_classes:
        raise UserError(
            f"{file}: labels from {labels.min()} to {labels.max()}, data.num_classes is {data.num_classes}; "
            "correct --data.num-classes"
        )
    pixels = _on_disk(flat).reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return [
        SourceImage(f"{file.stem}-{index:06d}", int(label) - 1, functools.partial(from_array, array, data))
        for index, (array, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def _on_disk(array: UInt8[np.ndarray, "n d"]) -> UInt8[np.ndarray, "n d"]:
    """The array on a file that has no name any more and goes with the process."""
    with tempfile.TemporaryFile() as file:
        kept: UInt8[np.ndarray, "n d"] = np.memmap(file, np.uint8, "w+", shape=array.shape)
        kept[:] = array
        return kept


def _npz_batch(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("data", "labels") if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: not a readable npz of plain arrays ({error}); download it again") from error


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled dicts, lists, numbers and numpy arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_MAKERS:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)


def _pickled_batch(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            content = _ArraysOnly(opened, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError, IndexError, TypeError) as error:
        raise UserError(
            f"{file}: not a pickle of plain arrays ({error}), so it was not run; download it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not data and labels; download it again")
    return content
