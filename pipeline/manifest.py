"""What a prepared split is: its images' shape and levels, where they come from, and its shards with their hashes."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.storage import MissingObjectError, join, read

MANIFEST_NAME = "manifest.json"


class Shard(BaseModel):
    """One tar: its file name below the manifest, its records, its bytes and their sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    records: int
    bytes: int
    sha256: str


class Unreadable(BaseModel):
    """A source image that was left out, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str


class Manifest(BaseModel):
    """A split: everything that a reader must know before it reads a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    version: str
    split: str
    shape: tuple[int, int, int]
    """Channels, height, width."""
    levels: int
    resize: str
    classes: tuple[str, ...]
    prepare_seed: int
    holdout: Literal["images", "classes"] = "images"
    """What was held out where the source has no splits of its own; only "classes" is written."""
    shards: tuple[Shard, ...]
    unreadable: tuple[Unreadable, ...] = ()
    """Source images that could not be read; at most data.max_unreadable."""

    @property
    def num_images(self) -> int:
        """Records of all shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def digest(self) -> str:
        """sha256 of the manifest's content, in hexadecimal: two splits with the same digest hold the same bytes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as it is written, keys sorted."""
        # Data sets made before there was a choice keep their digest, by which checkpoints know them.
        defaults = {"holdout": "images", "unreadable": ()}
        exclude = {name for name, value in defaults.items() if getattr(self, name) == value}
        return json.dumps(self.model_dump(mode="json", exclude=exclude), indent=1, sort_keys=True)


def split_url(config: Config, split: str) -> str:
    """Folder of a split's shards and manifest."""
    return join(config.data.url, split)


def load_manifest(config: Config, split: str) -> Manifest:
    """The split's manifest, checked against the configuration.

    Raises:
        UserError: there is none, it can't be read as one, or its images are not those that the configuration describes.
    """
    url = join(split_url(config, split), MANIFEST_NAME)
    try:
        try:
            manifest = Manifest.model_validate_json(read(url))
        except ValidationError:  # as a shard, it may have been spoilt on its way
            manifest = Manifest.model_validate_json(read(url))
    except MissingObjectError as error:
        raise UserError(
            f"{url}: no manifest; run `python -m jobs.prepare {config.preset}` with this data.url first, or correct it"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{url}: not a manifest ({'.'.join(map(str, first['loc']))}: {first['msg']}); prepare the data set again"
        ) from error
    data = config.data
    described = {
        "data.channels": (data.channels, manifest.shape[0]),
        "data.image_size": ((data.image_size, data.image_size), manifest.shape[1:]),
        "data.levels": (data.levels, manifest.levels),
        "data.num_classes": (data.num_classes, len(manifest.classes)),
    }
    for key, (wanted, found) in described.items():
        if wanted != found:
            raise UserError(
                f"{url}: {key} is {wanted} in the configuration and {found} in the manifest; change {key} or data.url"
            )
    return manifest
