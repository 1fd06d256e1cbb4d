"""Images to shards: every split is written shard by shard and becomes visible with its manifest, which goes last."""

import hashlib
import json
import random
from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST_NAME, Manifest, Shard, split_url
from pipeline.shards import Record, describe, encode_png, pack
from pipeline.sources import Source, SourceImage, open_source
from pipeline.storage import MissingObjectError, delete, exists, join, names_below, read, write

RECEIPT_SUFFIX = ".receipt.json"


def prepare(config: Config) -> dict[str, Manifest]:
    """Write every split of the source below data.url, and give the manifests by split.

    A split whose manifest is there is left as it is; one that was interrupted goes on after its last whole shard.

    Raises:
        UserError: the source can't be read, storage refuses, or data.url holds a data set made in another way.
    """
    source = open_source(config.data)
    if len(source.classes) != config.data.num_classes:
        raise UserError(
            f"data.num_classes is {config.data.num_classes}, the source has {len(source.classes)} classes: "
            f"set --data.num-classes {len(source.classes)}"
        )
    return {split: _prepare_split(config, source, split) for split in source.splits}


def data_version(config: Config, source: Source) -> str:
    """Name, size and resize filter, e.g. imagenet32-box, and the levels where they are fewer than the source's.

    Likelihoods of different versions are not comparable.
    """
    data = config.data
    name = data.name if data.name.endswith(str(data.image_size)) else f"{data.name}-{data.image_size}"
    quantised = f"-{data.levels}levels" if data.levels < source.levels else ""
    return f"{name}-{data.resize}{quantised}"


def _prepare_split(config: Config, source: Source, split: str) -> Manifest:
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
        return done
    recipe = _recipe_digest(described, images, data.records_per_shard)
    chunks = [images[start : start + data.records_per_shard] for start in range(0, len(images), data.records_per_shard)]
    shards = [
        _write_shard(config, source.levels, folder, f"shard-{number:06d}.tar", chunk, recipe)
        for number, chunk in enumerate(chunks)
    ]
    manifest = Manifest.model_validate(described | {"shards": shards})
    write(join(folder, MANIFEST_NAME), manifest.to_json().encode())
    for name in names_below(folder):
        if name.endswith(RECEIPT_SUFFIX):
            delete(join(folder, name))
    print(f"prepared {folder}: {manifest.num_images:,} images in {len(shards)} shards, version {manifest.version}")
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
    largest = max(shard.records for shard in manifest.shards)
    there = manifest.model_dump(mode="json") | {"images": manifest.num_images, "records_per_shard": largest}
    wanted = described | {"images": num_images, "records_per_shard": min(records_per_shard, num_images)}
    for key, value in wanted.items():
        if there[key] != value:
            raise UserError(
                f"{url}: already holds a data set with {key} {there[key]!r}, not {value!r}; choose another data.url"
            )
    print(f"nothing to do: {folder} already holds {manifest.num_images:,} images, version {manifest.version}")
    return manifest


def _recipe_digest(described: dict[str, object], images: Sequence[SourceImage], records_per_shard: int) -> str:
    """What decides the bytes of every shard, beside the pixels themselves."""
    names = [[image.name, image.label] for image in images]
    return hashlib.sha256(json.dumps([described, names, records_per_shard]).encode()).hexdigest()


def _write_shard(
    config: Config, source_levels: int, folder: str, file: str, images: Sequence[SourceImage], recipe: str
) -> Shard:
    """Write one shard and, after it, a receipt by which an interrupted `prepare` knows that it is whole."""
    receipt_url = join(folder, file + RECEIPT_SUFFIX)
    if exists(receipt_url):
        receipt = json.loads(read(receipt_url))
        if receipt["recipe"] == recipe and exists(join(folder, file)):
            return Shard.model_validate(receipt["shard"])
    content = pack([_record(config, source_levels, image) for image in images])
    shard = describe(file, content, len(images))
    write(join(folder, file), content)
    write(receipt_url, json.dumps({"recipe": recipe, "shard": shard.model_dump()}).encode())
    return shard


def _record(config: Config, source_levels: int, image: SourceImage) -> Record:
    pixels, data = image.load(), config.data
    if pixels.shape != (data.image_size, data.image_size, data.channels):
        raise UserError(
            f"{image.name}: image of height, width and channels {pixels.shape}, data.image_size is {data.image_size}, "
            f"data.channels is {data.channels}; correct them or set --data.resize box"
        )
    if data.levels < source_levels:
        # A product of two numbers below 256 needs 16 bits.
        pixels = (pixels.astype(np.uint16) * data.levels // source_levels).astype(np.uint8)
    key = image.name.rsplit(".", 1)[0].replace(".", "_")
    return Record(key, encode_png(pixels), image.label)
