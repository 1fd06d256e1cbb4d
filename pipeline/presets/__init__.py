"""Named configurations, each with its data version, cost and the bits/dim to expect."""

from pipeline.presets.cifar10 import CIFAR10
from pipeline.presets.digits import DIGITS
from pipeline.presets.faces import PORTRAITS
from pipeline.presets.imagenet import IMAGENET
from pipeline.presets.preset import Preset

__all__ = ["PRESETS", "Preset"]

PRESETS: dict[str, Preset] = DIGITS | CIFAR10 | IMAGENET | PORTRAITS
