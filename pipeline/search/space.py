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

POPULATION_KEYS = (
    "train.learning_rate",
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.gradient_clip",
    "train.ema_decay",
    "model.dropout",
    "model.condition_dropout",
)
"""Keys that may change in the middle of a training."""

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
    if is_population(config):
        _require_population(config, space)
    return space


def is_population(config: Config) -> bool:
    """Whether trials are members of a population, which take over each other's checkpoints."""
    return config.search.scheduler == "pbt"


def _require_population(config: Config, space: Space) -> None:
    for key in space:
        if key not in POPULATION_KEYS:
            raise UserError(
                f"search.space {key}: pbt changes values in the middle of a training, which this key can't bear; "
                f"choose among {', '.join(POPULATION_KEYS)}"
            )
    if config.search.searcher != "random" or config.search.objectives != ("bits_per_dim",):
        raise UserError(
            f"search.scheduler pbt draws its first values at random and makes bits_per_dim small: use "
            f"--search.searcher random (now {config.search.searcher}) and --search.objectives bits_per_dim"
        )
    if config.search.num_trials < 2:
        raise UserError(f"search.num_trials {config.search.num_trials}: a population has at least 2 members")


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of a space of choices."""
    lists = [domain.values for domain in space.values() if isinstance(domain, Choice)]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def rounded(space: Space, values: Values) -> dict[str, Any]:
    """The values with drawn numbers rounded to DIGITS digits, within their range."""
    taken = dict(values)
    for key, domain in space.items():
        if isinstance(domain, Range):
            value = values[key] if domain.is_whole else float(f"{values[key]:.{DIGITS}g}")
            taken[key] = min(max(value, domain.low), domain.high)
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


def member_name(number: int) -> str:
    """Name of a population's member."""
    return f"member{number}"


def search_name(config: Config) -> str:
    """The search's name."""
    return config.search.name or f"{config.preset}-search"


def search_url(config: Config) -> str:
    """Folder of the search: its records, and a run's folder a trial."""
    return join(config.run.url, search_name(config))


def trial_config(config: Config, values: Values, name: str) -> Config:
    """The run of one trial: its values, the steps that its budget pays for, evaluated at equal shares of them."""
    changed = _with_steps(with_values(config, values), config)
    steps = changed.train.steps
    interval = -(-steps // config.search.evaluations)
    run = {
        "run.name": name,
        "run.url": search_url(config),
        "run.eval_interval": interval,
        "run.checkpoint_interval": interval,
        "run.sample_interval": steps,
        "run.log_interval": min(config.run.log_interval, interval),
    }
    if is_population(config):  # another member may go on from any of them
        run["run.keep_checkpoints"] = config.search.evaluations
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
