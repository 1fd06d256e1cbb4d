"""Shards: WebDataset tars of lossless PNG images with their label, written whole and read with their hash checked.

webdataset is imported where a shard is written, or one is read that isn't laid out as `pack` does: training on prepared
shards needs none.
"""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.shard_cache import ShardCache
from pipeline.storage import MissingObjectError, join, read

TAR_BLOCK = 512


@dataclass(frozen=True)
class Record:
    """One tar entry: its key, its PNG bytes and its label."""

    key: str
    png: bytes
    label: int


def encode_png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The pixels' levels as a PNG, losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(record: Record, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "c h w"]:
    """The levels of a record's image.

    Raises:
        UserError: the bytes are no image, or one of another shape.
    """
    try:
        pixels = np.asarray(Image.open(io.BytesIO(record.png)))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(
            f"record {record.key}: its png can't be decoded ({error}); prepare the data set again"
        ) from error
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if planes.shape != shape:
        raise UserError(
            f"record {record.key}: image of shape {planes.shape}, the manifest says {shape}; prepare the data set again"
        )
    return planes


def pack(records: Sequence[Record]) -> bytes:
    """The tar of the records by webdataset's writer: the same records give the same bytes."""
    import webdataset

    buffer = io.BytesIO()
    # With a time that isn't an int tarfile writes a kilobyte more for each entry.
    with webdataset.TarWriter(buffer, encoder=False, mtime=0) as writer:
        for record in records:
            writer.write({"__key__": record.key, "png": record.png, "cls": str(record.label).encode()})
    return buffer.getvalue()


def describe(file: str, content: bytes, records: int) -> Shard:
    """The manifest's entry for a shard's bytes."""
    return Shard(file=file, records=records, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def fetch(split_url: str, shard: Shard, cache: ShardCache | None = None) -> list[Record]:
    """The records of a shard, from the cache if there is one, checked against the manifest.

    Raises:
        UserError: the shard is missing, truncated, altered, or holds something else than its manifest says.
    """
    url = join(split_url, shard.file)
    content = cache.get(shard, lambda: _checked(url, shard)) if cache else _checked(url, shard)
    try:
        records = _plain_records(content) or _webdataset_records(content, url)
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise UserError(f"{url}: not a shard of png and cls entries ({error!r}); prepare the data set again") from error
    if len(records) != shard.records:
        raise UserError(
            f"{url}: {len(records)} records where the manifest says {shard.records}; prepare the data set again"
        )
    return records


def _checked(url: str, shard: Shard) -> bytes:
    """The shard's bytes; read once more where they are wrong, as they may have been spoilt on their way."""
    for last in (False, True):
        try:
            content = read(url)
        except MissingObjectError as error:
            raise UserError(f"{url}: the shard is missing; prepare the data set again") from error
        if len(content) == shard.bytes and hashlib.sha256(content).hexdigest() == shard.sha256:
            break
        if last and len(content) != shard.bytes:
            raise UserError(
                f"{url}: truncated or altered, {len(content)} bytes where the manifest says {shard.bytes}; "
                "prepare the data set again"
            )
        if last:
            raise UserError(
                f"{url}: wrong sha256, its bytes are not those of the manifest's {shard.sha256}; prepare the data set "
                "again"
            )
    return content


def _webdataset_records(content: bytes, url: str) -> list[Record]:
    import webdataset

    files = webdataset.tariterators.tar_file_expander([{"url": url, "stream": io.BytesIO(content)}])
    return [
        Record(sample["__key__"], sample["png"], int(sample["cls"]))
        for sample in webdataset.tariterators.group_by_keys(files)
    ]


def _plain_records(content: bytes) -> list[Record] | None:
    """The records of a tar of pairs KEY.cls, KEY.png, as `pack` writes it; None for any other tar.

    Python's tarfile takes longer for the two entries than the decoding of a small image.
    """
    records, keys, at = [], set[bytes](), 0
    while at < len(content) and content[at]:
        label = _plain_entry(content, at, b".cls")
        image = label and _plain_entry(content, label.end, b".png")
        if not label or not image or label.key != image.key or label.key in keys:
            return None
        keys.add(label.key)
        records.append(Record(label.key.decode(), image.content, int(label.content)))
        at = image.end
    return records


class _Entry(NamedTuple):
    key: bytes
    content: bytes
    end: int


def _plain_entry(content: bytes, at: int, ending: bytes) -> _Entry | None:
    """The tar entry whose header begins at the offset, if it is a plain file with that ending and a name of one dot."""
    name = content[at : at + 100].rstrip(b"\0")
    size = content[at + 124 : at + 135]
    kind, prefix = content[at + 156 : at + 157], content[at + 345 : at + 346]
    if kind != b"0" or prefix != b"\0" or not name.endswith(ending) or name.count(b".") != 1 or not size.isdigit():
        return None
    start = at + TAR_BLOCK
    last = start + int(size, 8)
    return _Entry(name[: -len(ending)], content[start:last], last + -last % TAR_BLOCK)
