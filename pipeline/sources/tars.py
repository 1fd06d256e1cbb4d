"""Existing WebDataset tars, in a folder or in object storage: an image and, where there is one, a .cls label."""

import functools
import io
import re
import tarfile
from pathlib import PurePosixPath

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
from pipeline.storage import join, names_below, read


def open_tars(data: Data) -> Source:
    """All tars below data.source, of both splits if some are called by each, else a share is held out.

    A tar is of the split that is the first word of its path to be one: train/000.tar, imagenet1k-train-0000.tar.
    Each tar is read once for its members' places, one at a time; an image is read by its byte range. Records without
    a .cls entry get label 0, classes are the numbers 0 .. data.num_classes-1.
    """
    url = data.source
    names = [name for name in names_below(url) if name.endswith(".tar")]
    if not names:
        raise UserError(f"data.source {url}: no .tar below it; give the folder or s3://bucket/prefix of the tars")
    by_split: dict[str, list[str]] = {data.train_split: [], data.val_split: []}
    word = re.compile(rf"(?<![^\W_])({'|'.join(map(re.escape, by_split))})(?![^\W_])")
    for name in names:
        if found := word.search(name):
            by_split[found.group()].append(name)
    classes = tuple(str(number) for number in range(data.num_classes))
    if all(by_split.values()):
        require_no_held_out_classes(data, url)
        splits = {
            split: [image for name in found for image in _images(data, name)] for split, found in by_split.items()
        }
        return Source(classes, splits)
    lone = next((split for split, of_it in by_split.items() if of_it and of_it != names), None)
    if lone:
        raise lone_split(data, url, lone)
    return Source(classes, hold_out(data, [image for name in names for image in _images(data, name)]))


def _images(data: Data, name: str) -> list[SourceImage]:
    url = join(data.source, name)
    content = read(url)
    found: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in (member for member in tar if member.isfile()):
                # WebDataset's rule: the key ends at the first dot of the file's own name.
                file = PurePosixPath(member.name)
                key, _, ending = file.name.partition(".")
                if not key:  # a hidden file, which WebDataset passes over, too
                    continue
                record = str(file.with_name(key))
                if f".{ending.lower()}" in IMAGE_SUFFIXES:
                    found[record] = (member.name, member.offset_data, member.size)
                elif ending == "cls":
                    labels[record] = int(content[member.offset_data : member.offset_data + member.size])
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{url}: not a tar of images and .cls labels ({error}); repair or remove it") from error
    wrong = next((record for record in found if not 0 <= labels.get(record, 0) < data.num_classes), None)
    if wrong is not None:
        raise UserError(f"{url}: {wrong} has label {labels[wrong]}, data.num_classes is {data.num_classes}; correct it")
    return [
        SourceImage(
            f"{name.removesuffix('.tar')}/{file}",
            labels.get(record, 0),
            functools.partial(_part, url, start, size, data),
        )
        for record, (file, start, size) in found.items()
    ]


def _part(url: str, start: int, size: int, data: Data) -> UInt8[np.ndarray, "h w c"]:
    return decoded(read(url, start, size), f"{url} at byte {start:,}", data)
