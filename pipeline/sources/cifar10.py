"""CIFAR-10's binary version, as a tar.gz or unpacked."""

import functools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.pixels import from_array
from pipeline.sources.source import Source, SourceImage, require_no_held_out_classes
from pipeline.storage import files_below

RECORD_BYTES = 1 + 3 * 32 * 32


def open_cifar10(data: Data, path: Path) -> Source:
    """CIFAR-10's binary version: a record is a label byte and 3,072 bytes, red, green and blue planes row by row."""
    require_no_held_out_classes(data, path)
    files = _files(path)
    wanted = [f"data_batch_{number}.bin" for number in range(1, 6)]
    missing = [name for name in [*wanted, "test_batch.bin", "batches.meta.txt"] if name not in files]
    if missing:
        raise UserError(
            f"data.source {path}: {missing[0]} is missing; give cifar-10-binary.tar.gz or its unpacked folder"
        )
    splits: dict[str, list[SourceImage]] = {}
    for split, names in ((data.train_split, wanted), (data.val_split, ["test_batch.bin"])):
        splits[split] = [image for name in names for image in _images(data, path, name, files[name])]
    return Source(tuple(files["batches.meta.txt"].decode().split()), splits)


def _files(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in files_below(path) if file.suffix in (".bin", ".txt")}
    try:
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.isfile()]
            return {Path(member.name).name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"data.source {path}: not a readable tar ({error}); download cifar-10-binary.tar.gz again"
        ) from error


def _images(data: Data, path: Path, name: str, content: bytes) -> Iterator[SourceImage]:
    if not content or len(content) % RECORD_BYTES:
        raise UserError(
            f"data.source {path}: {name} has {len(content)} bytes, not a multiple of a record's {RECORD_BYTES}; "
            "download cifar-10-binary.tar.gz again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    for index, record in enumerate(records):
        if record[0] > 9:
            raise UserError(
                f"data.source {path}: {name} record {index} has label {record[0]}, not 0 to 9; download it again"
            )
        pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
        yield SourceImage(f"{Path(name).stem}-{index:05d}", int(record[0]), functools.partial(from_array, pixels, data))
