"""What a source of images is: labelled images by split, each read when it is asked for, on whichever machine."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.config import Data
from pipeline.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


class UnreadableImageError(UserError):
    """The bytes are no image that can be decoded."""


@dataclass(frozen=True)
class SourceImage:
    """One labelled image; `load` travels to the machine that reads it, so it is a partial of a module's function."""

    name: str
    label: int
    load: Callable[[], UInt8[np.ndarray, "h w c"]]


@dataclass(frozen=True)
class Source:
    """A labelled set of images by split, the names of its classes, and the values that a sub-pixel takes."""

    classes: tuple[str, ...]
    splits: dict[str, list[SourceImage]]
    levels: int = 256


def hold_out(data: Data, images: list[SourceImage]) -> dict[str, list[SourceImage]]:
    """A seeded share of each class's images, or of whole classes, as val_split, the rest as train_split."""
    shuffled = list(images)
    random.Random(data.prepare_seed).shuffle(shuffled)
    by_label: dict[int, list[SourceImage]] = {}
    for image in shuffled:
        by_label.setdefault(image.label, []).append(image)
    if data.holdout == "classes":
        count = round(len(by_label) * data.holdout_fraction)
        labels = random.Random(data.prepare_seed).sample(sorted(by_label), count)
        held_out = {image.name for label in labels for image in by_label[label]}
    else:
        shares = [members[: round(len(members) * data.holdout_fraction)] for members in by_label.values()]
        held_out = {image.name for members in shares for image in members}
    if not 0 < len(held_out) < len(images):
        raise UserError(
            f"data.holdout_fraction {data.holdout_fraction} with data.holdout {data.holdout} holds out "
            f"{len(held_out)} of {len(images)} images, of {len(by_label)} classes: both splits need images; "
            "change one of the two fields"
        )
    return {
        data.train_split: [image for image in images if image.name not in held_out],
        data.val_split: [image for image in images if image.name in held_out],
    }


def require_no_held_out_classes(data: Data, path: Path | str) -> None:
    """Refuse data.holdout classes for a source with splits of its own: its classes would be in both."""
    if data.holdout == "classes":
        raise UserError(
            f"data.holdout classes: data.source {path} has splits of its own, none of its classes are held out; "
            "set --data.holdout images"
        )


def lone_split(data: Data, path: Path | str, split: str) -> UserError:
    """What is said of a source with one of the two splits and other images, which would be mixed with it."""
    fields = {data.train_split: "data.train-split", data.val_split: "data.val-split"}
    other = next(name for name in fields if name != split)
    return UserError(
        f"data.source {path}: {split} is there, {other} is not; name the other split as it is called there by "
        f"--{fields[other]}, or give the images of {split} alone, to hold a share of them out; if {split} is no split "
        f"there, give it another name by --{fields[split]}"
    )
