"""A prepared data set looked at whole: every byte, hash and image of it, what it holds, and a sheet of pictures."""

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.grid import grid_png
from pipeline.manifest import Manifest, Shard, load_manifest, split_url
from pipeline.shards import decode_png, fetch
from pipeline.spread import ImageProgress, Spread
from pipeline.storage import join, write

SHEET_NAME = "contact-sheet.png"
SHEET_COLUMNS = 16
SHEET_IMAGES = 256
MOST_NAMED = 5


@dataclass(frozen=True)
class ShardFindings:
    """What one shard holds; sums are of levels and of their squares, a colour each."""

    labels: Int64[np.ndarray, " num_classes"]
    sums: Int64[np.ndarray, " c"]
    squares: Int64[np.ndarray, " c"]
    records: list[tuple[str, bytes]]
    """Key and a digest of the pixels of each."""
    sheet: UInt8[np.ndarray, "n c h w"]
    faults: list[str]


@dataclass
class Findings:
    """What a split holds."""

    split: str
    manifest: Manifest
    labels: Int64[np.ndarray, " num_classes"]
    sums: Int64[np.ndarray, " c"]
    squares: Int64[np.ndarray, " c"]
    keys: dict[bytes, list[str]] = field(default_factory=dict)
    """Record keys by the digest of their pixels."""
    faults: list[str] = field(default_factory=list)

    def add(self, found: ShardFindings) -> None:
        """Count a shard."""
        self.labels += found.labels
        self.sums += found.sums
        self.squares += found.squares
        for key, digest in found.records:
            self.keys.setdefault(digest, []).append(key)
        self.faults += found.faults

    @property
    def images(self) -> int:
        """Images that were read."""
        return int(self.labels.sum())

    @property
    def repeated(self) -> list[list[str]]:
        """Keys of records that have the same pixels."""
        return [sorted(keys) for keys in self.keys.values() if len(keys) > 1]

    def lines(self) -> list[str]:
        """The findings, a line each."""
        channels, height, width = self.manifest.shape
        seen = self.labels[self.labels > 0]
        per_class = f"{seen.min():,} to {seen.max():,} a class" if len(seen) else "none"
        dims = max(1, self.images * height * width)
        mean = self.sums / dims
        deviation = np.sqrt(np.maximum(0.0, self.squares / dims - mean**2))
        largest = sum(shard.bytes for shard in self.manifest.shards)
        repeated = self.repeated
        return [
            f"{self.split}: {self.images:,} of {self.manifest.num_images:,} images sound, {channels}x{height}x{width}, "
            f"{self.manifest.levels} levels, {len(self.manifest.shards):,} shards of {largest:,} bytes, version "
            f"{self.manifest.version}",
            f"{self.split}: {len(seen):,} of {len(self.labels):,} classes, {per_class}",
            f"{self.split}: mean {_numbers(mean)}, deviation {_numbers(deviation)} levels, a colour each",
            f"{self.split}: {sum(map(len, repeated)):,} images that are not alone with their pixels{_named(repeated)}",
            *([f"{self.split}: {len(self.manifest.unreadable):,} source images left out as unreadable"]
              if self.manifest.unreadable else []),
        ]  # fmt: skip


def inspect(config: Config) -> list[str]:
    """Read every shard of both splits, write a contact sheet beside each manifest, and give the findings as lines.

    Raises:
        UserError: after everything was read, if a shard, a record or a key isn't what the manifest says.
    """
    with Spread(config) as spread:
        found = [_inspect_split(config, split, spread) for split in (config.data.train_split, config.data.val_split)]
    train, val = found
    shared = [[min(train.keys[digest]), min(val.keys[digest])] for digest in train.keys.keys() & val.keys.keys()]
    lines = [line for findings in found for line in findings.lines()]
    lines.append(f"both: {len(shared):,} images of {val.split} have the pixels of one of {train.split}{_named(shared)}")
    faults = [fault for findings in found for fault in findings.faults]
    if faults:
        print("\n".join(lines), flush=True)
        raise UserError(f"{len(faults)} faults in {config.data.url}: {'; '.join(faults[:MOST_NAMED])}")
    return lines


def _inspect_split(config: Config, split: str, spread: Spread) -> Findings:
    manifest = load_manifest(config, split)
    channels = manifest.shape[0]
    findings = Findings(
        split,
        manifest,
        np.zeros(len(manifest.classes), np.int64),
        np.zeros(channels, np.int64),
        np.zeros(channels, np.int64),
    )
    progress, sheets = ImageProgress(split, manifest.num_images), dict[int, UInt8[np.ndarray, "n c h w"]]()
    shown = -(-SHEET_IMAGES // len(manifest.shards))
    reader = functools.partial(_inspect_shard, manifest, split_url(config, split), shown)
    for index, found in spread.map(reader, manifest.shards, manifest.num_images):
        findings.add(found)
        sheets[index] = found.sheet
        progress.add(manifest.shards[index].records)
    counts = Counter(key for keys in findings.keys.values() for key in keys)
    findings.faults += [
        f"{split}: the record key {key} is there {count} times; prepare the data set again"
        for key, count in counts.items()
        if count > 1
    ]
    sheet = np.concatenate([sheets[index] for index in sorted(sheets)])[:SHEET_IMAGES]
    if len(sheet):
        url = join(split_url(config, split), SHEET_NAME)
        write(url, grid_png(torch.from_numpy(sheet), manifest.levels, min(SHEET_COLUMNS, len(sheet))))
    return findings


def _inspect_shard(manifest: Manifest, url: str, shown: int, shard: Shard) -> ShardFindings:
    channels = manifest.shape[0]
    labels = np.zeros(len(manifest.classes), np.int64)
    sums, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    digests, sheet, faults = [], np.zeros((0, *manifest.shape), np.uint8), []
    try:
        records = fetch(url, shard)
    except UserError as error:
        return ShardFindings(labels, sums, squares, [], sheet, [str(error)])
    images = []
    for record in records:
        try:
            image = decode_png(record, manifest.shape)
        except UserError as error:
            faults.append(f"{shard.file}: {error}")
            continue
        if image.max() >= manifest.levels or not 0 <= record.label < len(labels):
            faults.append(
                f"{shard.file}: record {record.key} has label {record.label} and a level of {image.max()}, the "
                f"manifest says {len(labels)} classes and {manifest.levels} levels; prepare the data set again"
            )
            continue
        labels[record.label] += 1
        sums += image.sum((1, 2), dtype=np.int64)
        squares += np.square(image.astype(np.int64)).sum((1, 2))
        digests.append((record.key, hashlib.sha256(image.tobytes()).digest()[:16]))
        images.append(image)
    if images:
        sheet = np.stack(images[:shown])
    return ShardFindings(labels, sums, squares, digests, sheet, faults)


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _named(groups: list[list[str]]) -> str:
    named = "; ".join(" = ".join(keys) for keys in sorted(groups)[:MOST_NAMED])
    return f": {named}{' ...' if len(groups) > MOST_NAMED else ''}" if groups else ""
