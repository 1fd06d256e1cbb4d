"""From the words behind `python -m jobs.NAME` to a configuration, and from errors to one line and an exit status."""

import contextlib
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence

import tyro
from tyro.conf import AvoidSubcommands, Suppress

from pipeline.config import Config, flatten
from pipeline.cost import describe
from pipeline.errors import StoppedError, UserError
from pipeline.model_config import GatedPixelCNNModel, Model, PortraitModel
from pipeline.presets import PRESETS, preset_named
from pipeline.storage import MissingObjectError, absolute_url, input_url, read

RULE = re.compile(r"[\u2500\u256d\u256e\u2570\u256f+\- ]{3,}")
REGISTER_KEY = "--tracking.register-as"
TRACEBACK_VARIABLE = "PIXELCNN_TRACEBACK"


class Command(Config):
    """Everything that a job needs to know."""

    preset: Suppress[str] = "digits"
    """Preset that this configuration started from."""
    model: AvoidSubcommands[Model] = GatedPixelCNNModel()
    dry_run: bool = False
    """Print the resolved configuration, parameters, FLOPs and cost, and do nothing."""


def run_job(
    name: str,
    purpose: str,
    job: Callable[[Config], None],
    words: Sequence[str] | None = None,
    config_of_run: Callable[[str], Config] | None = None,
) -> int:
    """Parse, do the job, and give the exit status.

    It is 0, 1 for an error told in one line, 2 for words not understood, 143 for a training or a search that SIGTERM or
    Ctrl-C stopped, 130 for any other job that Ctrl-C did.

    Args:
        name: the job's module, e.g. "jobs.train".
        purpose: one line for --help.
        job: what is done with the configuration.
        words: the command line; sys.argv where None.
        config_of_run: the configuration of a run in MLflow, for a job that takes RUN where others take a preset.
    """
    arguments = list(sys.argv[1:] if words is None else words)
    try:
        command = parse(name, purpose, arguments, config_of_run)
        config = with_absolute_urls(Config(**{key: value for key, value in command if key != "dry_run"}))
        if command.dry_run:
            print(describe(config))
        else:
            job(config)
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except StoppedError as error:
        print(f"{error}; the same command goes on", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def parse(
    name: str, purpose: str, words: Sequence[str], config_of_run: Callable[[str], Config] | None = None
) -> Command:
    """The configuration of a preset, a file or a run with overrides: `digits --model.num-layers 4`.

    Raises:
        UserError: unknown preset or key, or a value that its field can't take.
        SystemExit: 0, after --help.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_overview(name, purpose, takes_runs=config_of_run is not None))
        raise SystemExit(0 if words else 2)
    if words[0] == "--config":
        return _override(name, purpose, _config_of_file(words[1] if len(words) > 1 else ""), words[2:])
    if words[0] not in PRESETS and config_of_run and not words[0].startswith("-"):
        return _override(name, purpose, config_of_run(words[0]), words[1:])
    return _override(name, purpose, preset_named(words[0]).config, words[1:])


def _config_of_file(path: str) -> Config:
    """The configuration in a JSON file, as `search` writes its best and MLflow keeps each run's."""
    place = f"--config {path!r}"
    try:
        return config_of_json(read(input_url(path)), place)
    except (MissingObjectError, OSError) as error:
        raise UserError(f"{place}: no configuration ({error}); name a JSON file of one") from error


def config_of_json(content: str | bytes, place: str) -> Config:
    """The configuration that was written as JSON; errors name the place."""
    try:
        config = Config.model_validate(json.loads(content))
    except ValueError as error:
        raise UserError(f"{place}: no configuration ({error}); name a JSON file of one") from error
    if config.preset not in PRESETS:
        raise UserError(f"{place}: preset {config.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    return config


def _override(name: str, purpose: str, config: Config, words: Sequence[str]) -> Command:
    """The configuration with the overrides that the words name."""
    preset = PRESETS[config.preset]
    default = Command(**dict(config))
    words = _switched([re.sub(r"^--register(?==|$)", REGISTER_KEY, word) for word in words], config)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            command, unknown = tyro.cli(
                Command,
                default=default,
                args=words,
                prog=f"python -m {name} {config.preset}",
                description=f"{purpose} {preset.summary}",
                return_unknown_args=True,
            )
    except SystemExit as exit_:
        if exit_.code == 0:
            raise
        raise UserError(_one_line(told.getvalue())) from exit_
    if unknown:
        raise UserError(_unknown_key(unknown[0], config))
    return command


def _switched(words: Sequence[str], config: Config) -> list[str]:
    """The words with each `--section.key True` or `=False` as tyro wants it: `--section.key` or `--section.no-key`."""
    switches = {key for key, value in flatten(config).items() if isinstance(value, bool)}
    taken, left = list[str](), list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name.removeprefix("--").replace("-", "_") in switches:
            section, _, key = name.rpartition(".")
            forms = {"true": name, "false": f"{section}.no-{key}"}
            if not equals and left and left[0].lower() in forms:
                value = left.pop(0)
            word = forms.get(value.lower(), word)
        taken.append(word)
    return taken


def with_absolute_urls(config: Config) -> Config:
    """The configuration with every folder absolute, as Ray's workers stand in folders of their own."""
    folders = {name: getattr(config.data, name) for name in ("url", "cache_folder")}
    data = config.data.model_copy(update={name: absolute_url(url) for name, url in folders.items() if url})
    run = config.run.model_copy(update={"url": absolute_url(config.run.url)})
    named = {name: getattr(config.sample, name) for name in ("url", "mse_run")}
    sample = config.sample.model_copy(update={name: absolute_url(url) for name, url in named.items() if url})
    if sample.vectors:
        sample = sample.model_copy(update={"vectors": input_url(sample.vectors)})
    model = config.model
    if isinstance(model, PortraitModel) and model.embedding_run:
        model = model.model_copy(update={"embedding_run": absolute_url(model.embedding_run)})
    return config.model_copy(update={"model": model, "data": data, "run": run, "sample": sample})


def _overview(name: str, purpose: str, takes_runs: bool) -> str:
    lines = [
        f"usage: python -m {name} PRESET [--section.key VALUE ...] [--dry-run]",
        f"       python -m {name} --config FILE.json [--section.key VALUE ...] [--dry-run]",
        *([f"       python -m {name} RUN (an id or a name in MLflow) [--section.key VALUE ...]"] if takes_runs else []),
        "",
        purpose,
        "",
        "Presets:",
    ]
    lines += [f"  {key:14s} {preset.summary}" for key, preset in PRESETS.items()]
    lines += [
        "",
        f"python -m {name} PRESET --help explains each field with its unit.",
        f"{TRACEBACK_VARIABLE}=1 shows the stack trace of an error.",
    ]
    return "\n".join(lines)


def _unknown_key(word: str, config: Config) -> str:
    key = word.removeprefix("--").split("=")[0].replace("-", "_")
    known = [*flatten(config), "dry_run"]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean --{near[0]}? " if near else ""
    return f"unknown key {word!r}: {hint}--help lists the keys"


def _one_line(box: str) -> str:
    """The message of tyro's box, in Unicode or ASCII, without its frame and the help text below the first rule."""
    lines = [line.strip("\u2502| ") for line in box.splitlines()[1:]]
    told: list[str] = []
    for line in lines:
        if not RULE.fullmatch(line):
            told.append(line)
        elif told:
            break
    return f"{' '.join(' '.join(told).split()).removeprefix('Error parsing ')} (--help explains each field)"
