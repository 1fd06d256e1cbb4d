"""Drawn images on storage: part by part while they are drawn, then pictures, arrays and the manifest.

Below the URL of a request: `request.json` says what was asked for, `parts/` holds the batches that are done, whoever
drew them; the same request goes on with those that aren't. At the end stand `images/*.png`, `samples.npz`,
`samples.png` and `manifest.json`, which is written last; the parts are then removed, those that a kill left behind when
the request is made again.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from pydantic import BaseModel, ConfigDict

from pipeline.errors import UserError
from pipeline.grid import image_png
from pipeline.storage import delete, delete_below, exists, join, names_below, read, write

MANIFEST, REQUEST = "manifest.json", "request.json"


class SampleManifest(BaseModel):
    """What was drawn: written when everything else is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    count: int
    shape: tuple[int, int, int]
    """Channels, height, width."""
    levels: int
    first_seed: int
    sum_of_nats: float
    likelihood: str
    """Of what was drawn, under the model at temperature 1, as it is told."""
    files: dict[str, str]
    """sha256 of samples.npz and samples.png; the images' own files are as in samples.npz."""
    request: dict[str, str]


@dataclass(frozen=True)
class Part:
    """Images `first` .. of the request."""

    first: int
    images: UInt8[np.ndarray, "n c h w"]
    nats: Float64[np.ndarray, " n"]


def request_digest(request: dict[str, str]) -> str:
    """Eight hexadecimal digits that name a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]


def finished(url: str, request: dict[str, str]) -> SampleManifest | None:
    """The manifest of the request if all is drawn, its parts then gone; else the URL is ready for them.

    Raises:
        UserError: the URL holds images of another request.
    """
    if exists(join(url, MANIFEST)):
        manifest = SampleManifest.model_validate_json(read(join(url, MANIFEST)))
        _require_same(url, manifest.request, request)
        _remove_parts(url)
        return manifest
    if exists(join(url, REQUEST)):
        _require_same(url, json.loads(read(join(url, REQUEST))), request)
    else:
        write(join(url, REQUEST), json.dumps(request, indent=1, sort_keys=True).encode())
    return None


def parts_done(url: str) -> set[int]:
    """First images of the parts that are there."""
    return {int(name.removesuffix(".npz")) for name in names_below(join(url, "parts")) if name.endswith(".npz")}


def write_part(url: str, part: Part, levels: int, pictures: bool) -> None:
    """Put the images as PNG files if they are wanted, then the part, whose presence says that all of it is there."""
    if pictures:
        for index, image in enumerate(part.images, part.first):
            write(join(url, "images", f"{index:06d}.png"), image_png(image, levels))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=part.images, nats=part.nats)
    write(join(url, "parts", f"{part.first:09d}.npz"), buffer.getvalue())


def read_parts(url: str, starts: Iterable[int]) -> list[Part]:
    """The parts with these first images.

    Raises:
        MissingObjectError: one isn't there.
    """
    parts = []
    for first in starts:
        with np.load(io.BytesIO(read(join(url, "parts", f"{first:09d}.npz"))), allow_pickle=False) as arrays:
            parts.append(Part(first, arrays["images"], arrays["nats"]))
    return parts


def finish(url: str, manifest: SampleManifest, files: dict[str, bytes]) -> SampleManifest:
    """Put the files and then the manifest with their hashes, and remove what was for the way alone."""
    for name, content in files.items():
        write(join(url, name), content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = manifest.model_copy(update={"files": hashes})
    write(join(url, MANIFEST), manifest.model_dump_json(indent=1).encode())
    _remove_parts(url)
    return manifest


def _remove_parts(url: str) -> None:
    """Remove what nobody reads beside a manifest."""
    delete_below(join(url, "parts"))
    if exists(join(url, REQUEST)):
        delete(join(url, REQUEST))


def _require_same(url: str, before: dict[str, str], now: dict[str, str]) -> None:
    changed = [
        f"{key} was {before.get(key)}, now {now.get(key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{url}: holds images of another request ({'; '.join(changed)}); give another --sample.url, or remove it"
        )
