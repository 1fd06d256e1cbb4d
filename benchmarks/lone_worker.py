"""What scripts without Ray share: a worker that is this process, changed configurations, a stream past its start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config import Config, Section
from pipeline.decoded import are_kept
from pipeline.errors import UserError
from pipeline.presets import preset_named
from pipeline.stream import TrainingStream
from pipeline.told import Orders


def _never() -> bool:
    return False


@dataclass(frozen=True)
class LoneWorker:
    """The loop's worker, alone: `stops` is asked after each step, `tell` gets what is shown and reported."""

    device: torch.device
    stops: Callable[[], bool] = _never
    tell: Callable[[dict[str, float]], None] | None = None
    rank: int = 0
    world_size: int = 1

    def report(self, metrics: dict[str, float]) -> None:
        """Take where the run stands after a checkpoint."""
        if self.tell:
            self.tell(metrics)

    def show(self, run: str, metrics: dict[str, float]) -> None:
        """Take the metrics of a line of progress."""
        if self.tell:
            self.tell(metrics)

    def orders(self) -> Orders:
        """To stop, once it is time."""
        return Orders.STOP if self.stops() else Orders.NONE

    def is_preempted(self) -> bool:
        """Nobody takes this process's machine away with notice."""
        return False

    def hold(self) -> None:
        """Never asked for, as nothing here orders it."""
        raise NotImplementedError("a lone worker is never told to hold")


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """The configuration, or a job's command line without its words beside it, with some fields of some sections set."""
    values = config.model_dump(include=set(Config.model_fields))
    return Config.model_validate(values | {name: values[name] | fields for name, fields in sections.items()})


def with_overrides(config: Config, words: list[str]) -> Config:
    """The configuration with words like "train.steps=100" set, values as pydantic reads them.

    Raises:
        UserError: a word is not SECTION.KEY=VALUE, a key is unknown, or a value doesn't fit.
    """
    sections: dict[str, dict[str, Any]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        section, _, field = key.partition(".")
        if not (equals and field and isinstance(getattr(config, section, None), Section)):
            known = ", ".join(name for name, own in config if isinstance(own, Section))
            raise UserError(f"{word}: give SECTION.KEY=VALUE, like train.steps=100; sections are {known}")
        sections.setdefault(section, {})[field] = value
    return changed(config, **sections)


def changed_presets(words: list[str], default: list[str]) -> tuple[list[str], list[Config]]:
    """The words with a =, and with them set the presets that the other words name, `default` where there are none.

    Raises:
        UserError: a preset or a key is unknown, or a value doesn't fit.
    """
    changes = [word for word in words if "=" in word]
    presets = [word for word in words if "=" not in word] or default
    return changes, [with_overrides(preset_named(preset).config, changes) for preset in presets]


def pass_first_epoch(stream: TrainingStream) -> None:
    """Take the batches in which the images of a small split are decoded, so that later ones are as most of a run's."""
    if are_kept(stream.manifest, stream.config.data.decoded_gigabytes):
        while stream.images_seen < stream.manifest.num_images:
            next(stream)
