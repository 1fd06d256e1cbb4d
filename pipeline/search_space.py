"""What a search tries: typed spaces of dotted keys, and the trial that a choice of values makes."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pipeline.config import RESULT_SECTIONS, Config, flatten
from pipeline.cost import training_flops
from pipeline.errors import UserError
from pipeline.storage import join

FORM = re.compile(r"^([\w.\-]+)=(\w+)\((.*)\)$")
REMEDY = "write KEY=choice(a,b,...), KEY=uniform(low,high), KEY=loguniform(low,high) or KEY=randint(low,high)"
DIGITS = 4
"""Digits to which drawn numbers are rounded, so that configuration, name and table say the same."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """Some values, in the order in which a grid takes them."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones, or spread evenly by value or by logarithm."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False


Space = dict[str, Choice | Range]


def parse_space(config: Config) -> Space:
    """The space that search.space describes, each end and value tried on the configuration.

    Raises:
        UserError: an unknown key, a form that is none, no values, low not below high, or a value that its field can't
            take.
    """
    if not config.search.space:
        raise UserError(f"search.space is empty: {REMEDY}")
    space: Space = {}
    for text in config.search.space:
        key, domain = _parse(text, config)
        if key in space:
            raise UserError(f"search.space names {key} twice: give it once")
        space[key] = domain
        for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
            with_values(config, {key: value})
    if config.search.searcher == "grid":
        for key, domain in space.items():
            if isinstance(domain, Range):
                raise UserError(f"search.space {key}: a grid takes choice(...); or use --search.searcher random")
    if config.search.budget and "train.steps" in space:
        raise UserError("search.space has train.steps, which follow from search.budget: leave one of them out")
    return space


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of a space of choices."""
    lists = [domain.values for domain in space.values() if isinstance(domain, Choice)]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def rounded(space: Space, values: Values) -> dict[str, Any]:
    """The values with drawn numbers rounded to DIGITS digits, within their range."""
    taken = dict(values)
    for key, domain in space.items():
        if isinstance(domain, Range) and not domain.is_whole:
            taken[key] = min(max(float(f"{values[key]:.{DIGITS}g}"), domain.low), domain.high)
    return taken


def with_values(config: Config, values: Values) -> Config:
    """The configuration with dotted keys set, checked as a whole."""
    tree = config.model_dump()
    for key, value in values.items():
        section, *parts = key.split(".")
        place = tree[section]
        for part in parts[:-1]:
            place = place[part]
        place[parts[-1]] = value
    return Config.model_validate(tree)


def trial_name(values: Values) -> str:
    """What differs, readable and stable, e.g. "layers4-filters32"."""
    lasts = [key.rsplit(".", 1)[-1] for key in values]
    words = [
        f"{(last if lasts.count(last) == 1 else key).removeprefix('num_')}{value}"
        for (key, value), last in zip(values.items(), lasts, strict=True)
    ]
    name = "-".join(words)
    safe = re.sub(r"[^\w.\-]", "_", name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def search_name(config: Config) -> str:
    """The search's name."""
    return config.search.name or f"{config.preset}-search"


def search_url(config: Config) -> str:
    """Folder of the search: its records, and a run's folder a trial."""
    return join(config.run.url, search_name(config))


def trial_config(config: Config, values: Values) -> Config:
    """The run of one trial: its values, the steps that its budget pays for, evaluated at equal shares of them."""
    changed = _with_steps(with_values(config, values), config)
    steps = changed.train.steps
    interval = -(-steps // config.search.evaluations)
    run = {
        "run.name": trial_name(values),
        "run.url": search_url(config),
        "run.eval_interval": interval,
        "run.checkpoint_interval": interval,
        "run.sample_interval": steps,
        "run.log_interval": min(config.run.log_interval, interval),
    }
    return with_values(changed, run)


def best_config(config: Config, values: Values) -> Config:
    """The configuration to train a trial's model with, as a run of its own beside the search."""
    changed = _with_steps(with_values(config, values), config)
    return with_values(changed, {"run.name": f"{search_name(config)}-best"})


def _with_steps(changed: Config, config: Config) -> Config:
    search, batch_size = config.search, changed.train.batch_size
    if not search.budget:
        return changed
    images = search.budget if search.budget_unit == "images" else search.budget * 1e15 / training_flops(changed)
    return with_values(changed, {"train.steps": max(1, round(images / batch_size))})


def _parse(text: str, config: Config) -> tuple[str, Choice | Range]:
    match = FORM.match(text.replace(" ", ""))
    if not match:
        raise UserError(f"search.space {text!r} is no space: {REMEDY}")
    key, form, inner = match.group(1).replace("-", "_"), match.group(2), match.group(3)
    known = [known for known in flatten(config) if known.split(".")[0] in RESULT_SECTIONS and known != "model.kind"]
    if key not in known:
        near = get_close_matches(key, known, n=1)
        raise UserError(
            f"search.space {text!r}: unknown key {key!r}; "
            f"{f'did you mean {near[0]}?' if near else 'name a key of model, data or train'}"
        )
    values = [_value(word) for word in inner.split(",")] if inner else []
    if form == "choice":
        if not values:
            raise UserError(f"search.space {text!r}: no values; give at least one")
        if len(set(map(repr, values))) < len(values):
            raise UserError(f"search.space {text!r}: a value stands there twice; give it once")
        return key, Choice(tuple(values))
    if form not in ("uniform", "loguniform", "randint"):
        raise UserError(f"search.space {text!r}: unknown form {form!r}; {REMEDY}")
    return key, _range(text, form, values, type(flatten(config)[key]) is int)


def _range(text: str, form: str, values: list[Any], is_int: bool) -> Range:
    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        raise UserError(f"search.space {text!r}: {form} takes two numbers, low and high")
    low, high = values
    if not low < high:
        raise UserError(f"search.space {text!r}: low {low} is not below high {high}; swap or correct them")
    if form == "loguniform" and low <= 0:
        raise UserError(f"search.space {text!r}: low {low} has no logarithm; give a low above 0")
    if is_int != (form == "randint"):
        told = "whole numbers; use randint or choice" if is_int else "fractions; use uniform, loguniform or choice"
        raise UserError(f"search.space {text!r}: the key takes {told}")
    if form == "randint" and not all(type(value) is int for value in values):
        raise UserError(f"search.space {text!r}: randint takes whole numbers")
    return Range(low, high, is_log=form == "loguniform", is_whole=form == "randint")


def _value(word: str) -> Any:
    """A number or a truth value as JSON writes it, else the word."""
    try:
        return json.loads(word)
    except ValueError:
        return word
