"""Images to shards: every split is written shard by shard and becomes visible with its manifest, which goes last."""

import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ValidationError

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST_NAME, Manifest, Shard, Unreadable, split_url
from pipeline.shards import Record, describe, encode_png, pack
from pipeline.sources.opening import open_source
from pipeline.sources.source import Source, SourceImage, UnreadableImageError
from pipeline.spread import ImageProgress, Spread
from pipeline.storage import MissingObjectError, delete, exists, join, names_below, read, write

RECEIPT_SUFFIX = ".receipt.json"


@dataclass(frozen=True)
class Chunk:
    """The images of one shard, each with its record key."""

    file: str
    images: list[tuple[str, SourceImage]]


class ShardResult(BaseModel):
    """A written shard, and what could not be read for it."""

    shard: Shard
    unreadable: tuple[Unreadable, ...]


class Receipt(BaseModel):
    """What an interrupted `prepare` finds beside a whole shard; the recipe decides the shard's bytes."""

    recipe: str
    result: ShardResult


def prepare(config: Config) -> dict[str, Manifest]:
    """Write every split of the source below data.url, and give the manifests by split.

    A split whose manifest is there is left as it is; one that was interrupted goes on after its last whole shard.

    Raises:
        UserError: the source can't be read, storage refuses, or data.url holds a data set made in another way.
    """
    if config.data.train_split == config.data.val_split:
        raise UserError(
            f"data.train_split and data.val_split are both {config.data.val_split!r}: give the two splits two names"
        )
    if config.data.source:
        print(f"looking for images in {config.data.source}", flush=True)  # a million files take minutes
    source = open_source(config.data)
    if len(source.classes) != config.data.num_classes:
        raise UserError(
            f"data.num_classes is {config.data.num_classes}, the source has {len(source.classes)} classes: "
            f"set --data.num-classes {len(source.classes)}"
        )
    with Spread(config) as spread:
        return {split: _prepare_split(config, source, split, spread) for split in source.splits}


def data_version(config: Config, source: Source) -> str:
    """Name, size and resize filter, e.g. imagenet32-box, and the levels where they are fewer than the source's.

    Likelihoods of different versions are not comparable.
    """
    data = config.data
    name = data.name if data.name.endswith(str(data.image_size)) else f"{data.name}-{data.image_size}"
    quantised = f"-{data.levels}levels" if data.levels < source.levels else ""
    return f"{name}-{data.resize}{quantised}"


def _prepare_split(config: Config, source: Source, split: str, spread: Spread) -> Manifest:
    folder, data = split_url(config, split), config.data
    images = list(source.splits[split])
    random.Random(f"{data.prepare_seed} {split}").shuffle(images)
    described = {
        "name": data.name,
        "version": data_version(config, source),
        "split": split,
        "shape": [data.channels, data.image_size, data.image_size],
        "levels": data.levels,
        "resize": data.resize,
        "classes": list(source.classes),
        "prepare_seed": data.prepare_seed,
        "holdout": data.holdout,
    }
    done = _finished(folder, described, len(images), data.records_per_shard)
    if done:
        _remove_receipts(folder)  # of a `prepare` that was killed between its manifest and their removal
        return done
    written = _written(config, source.levels, folder, described, images, spread)
    manifest = Manifest.model_validate(described | written)
    write(join(folder, MANIFEST_NAME), manifest.to_json().encode())
    _remove_receipts(folder)
    left_out = f", {len(manifest.unreadable)} unreadable ones left out" if manifest.unreadable else ""
    print(
        f"prepared {folder}: {manifest.num_images:,} images in {len(manifest.shards)} shards{left_out}, "
        f"version {manifest.version}"
    )
    return manifest


def _finished(folder: str, described: dict[str, object], num_images: int, records_per_shard: int) -> Manifest | None:
    """The manifest that is already there, if it says what would be written now."""
    url = join(folder, MANIFEST_NAME)
    try:
        manifest = Manifest.model_validate_json(read(url))
    except MissingObjectError:
        return None
    except ValidationError as error:
        raise UserError(f"{url}: not a manifest; remove it or choose another data.url") from error
    largest, fullest = max(shard.records for shard in manifest.shards), min(records_per_shard, num_images)
    there = manifest.model_dump(mode="json") | {
        "images": manifest.num_images + len(manifest.unreadable),
        "records_per_shard": fullest if largest <= fullest <= largest + len(manifest.unreadable) else largest,
    }
    wanted = described | {"images": num_images, "records_per_shard": fullest}
    for key, value in wanted.items():
        if there[key] != value:
            raise UserError(
                f"{url}: already holds a data set with {key} {there[key]!r}, not {value!r}; choose another data.url"
            )
    print(f"nothing to do: {folder} already holds {manifest.num_images:,} images, version {manifest.version}")
    return manifest


def _remove_receipts(folder: str) -> None:
    """Remove what nobody reads beside a manifest."""
    for name in names_below(folder):
        if name.endswith(RECEIPT_SUFFIX):
            delete(join(folder, name))


def _recipe_digest(described: dict[str, object], images: Sequence[SourceImage], records_per_shard: int) -> str:
    """What decides the bytes of every shard, beside the pixels themselves."""
    names = [[image.name, image.label] for image in images]
    return hashlib.sha256(json.dumps([described, names, records_per_shard]).encode()).hexdigest()


def _written(
    config: Config,
    source_levels: int,
    folder: str,
    described: dict[str, object],
    images: Sequence[SourceImage],
    spread: Spread,
) -> dict[str, object]:
    """Write the shards that are not there, each in one task, and give the manifest's shards and unreadable images."""
    size = config.data.records_per_shard
    recipe = _recipe_digest(described, images, size)
    keyed = list(zip(_keys(images), images, strict=True))
    chunks = [
        Chunk(f"shard-{number:06d}.tar", keyed[start : start + size])
        for number, start in enumerate(range(0, len(keyed), size))
    ]
    results: dict[int, ShardResult] = {}
    progress, unreadable = ImageProgress(folder, len(images)), 0
    shard_writer = functools.partial(_write_shard, config, source_levels, folder, recipe)
    for index, result in spread.map(shard_writer, chunks, len(images)):
        results[index] = result
        progress.add(len(chunks[index].images))
        unreadable += len(result.unreadable)
        if unreadable > config.data.max_unreadable:
            first = result.unreadable[0]
            if config.data.max_unreadable == 0:
                raise UserError(first.reason)
            raise UserError(
                f"{folder}: {unreadable} images can't be read, data.max_unreadable is {config.data.max_unreadable}; "
                f"the last one: {first.reason}"
            )
    ordered = [results[index] for index in range(len(chunks))]
    return {
        "shards": [result.shard for result in ordered],
        "unreadable": [image for result in ordered for image in result.unreadable],
    }


def _keys(images: Sequence[SourceImage]) -> list[str]:
    """Record keys: names without their ending, or with it where two names differ in it alone; no dots, as tars want."""
    stems = [image.name.rsplit(".", 1)[0].replace(".", "_") for image in images]
    counts = Counter(stems)
    keys = [
        stem if counts[stem] == 1 else image.name.replace(".", "_") for stem, image in zip(stems, images, strict=True)
    ]
    clash = next((key for key, count in Counter(keys).items() if count > 1), None)
    if clash is not None:
        raise UserError(f"two source images would get the record key {clash}: rename one of them")
    return keys


def _write_shard(config: Config, source_levels: int, folder: str, recipe: str, chunk: Chunk) -> ShardResult:
    """Write one shard and, after it, a receipt by which an interrupted `prepare` knows that it is whole."""
    receipt_url = join(folder, chunk.file + RECEIPT_SUFFIX)
    if exists(receipt_url):
        receipt = Receipt.model_validate_json(read(receipt_url))
        # A shard that lacks images is tried again: they may have been repaired.
        if receipt.recipe == recipe and not receipt.result.unreadable and exists(join(folder, chunk.file)):
            return receipt.result
    records, unreadable = [], []
    for key, image in chunk.images:
        try:
            records.append(_record(config, source_levels, key, image))
        except UnreadableImageError as error:
            unreadable.append(Unreadable(name=image.name, reason=str(error)))
    content = pack(records)
    result = ShardResult(shard=describe(chunk.file, content, len(records)), unreadable=tuple(unreadable))
    write(join(folder, chunk.file), content)
    write(receipt_url, Receipt(recipe=recipe, result=result).model_dump_json().encode())
    return result


def _record(config: Config, source_levels: int, key: str, image: SourceImage) -> Record:
    pixels, data = image.load(), config.data
    if pixels.shape != (data.image_size, data.image_size, data.channels):
        raise UserError(
            f"{image.name}: image of height, width and channels {pixels.shape}, data.image_size is {data.image_size}, "
            f"data.channels is {data.channels}; correct them or set --data.resize box"
        )
    if data.levels < source_levels:
        # A product of two numbers below 256 needs 16 bits.
        pixels = (pixels.astype(np.uint16) * data.levels // source_levels).astype(np.uint8)
    return Record(key, encode_png(pixels), image.label)
