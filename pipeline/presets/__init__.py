"""Named configurations, each with its data version, cost and the bits/dim to expect."""

import difflib

from pipeline.errors import UserError
from pipeline.presets.cifar10 import CIFAR10
from pipeline.presets.digits import DIGITS
from pipeline.presets.faces import PORTRAITS
from pipeline.presets.imagenet import IMAGENET
from pipeline.presets.preset import Preset

__all__ = ["PRESETS", "Preset", "preset_named"]

PRESETS: dict[str, Preset] = DIGITS | CIFAR10 | IMAGENET | PORTRAITS


def preset_named(name: str) -> Preset:
    """The preset of the name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown preset {name!r}: {hint}choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
