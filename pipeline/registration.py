"""A run's newest checkpoint as a version of a registered model: measured, packed, and set against the champion."""

import os
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from models.autoencoder import PixelCNNAutoEncoder
from pipeline.checkpoint import AVERAGED_NAME, Checkpoint, newest_sound, require_same_result
from pipeline.command_line import config_of_json
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import in_words
from pipeline.learner import run_url_of
from pipeline.manifest import Manifest, load_manifest
from pipeline.registry import WEIGHTS_TAG, ModelFiles, Registry, Version, find_run
from pipeline.run_identity import URI_VARIABLE, default_tracking_uri
from pipeline.runs import identity_of, run_evaluation

CHAMPION, CHALLENGER = "champion", "challenger"
MEASURES = ("bits_per_dim", "nats", "images")


class Figures(BaseModel):
    """What a version was measured to be, kept in its tags."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bits_per_dim: float
    nats: float
    """Of an image, on average."""
    images: int
    step: int
    data_version: str
    split: str
    split_digest: str
    """sha256 of the split's manifest."""
    given: str
    """What the likelihood is given: "nothing", "labels" or "vectors of the images"."""

    def tags(self) -> dict[str, str]:
        """The figures as a version's tags; numbers lose no digit."""
        return {name: str(value) for name, value in self.model_dump().items()}

    @property
    def text(self) -> str:
        """What a person reads."""
        given = "" if self.given == "nothing" else f" given {self.given}"
        return f"{in_words(self.model_dump())}{given} over {self.images:,} images of {self.data_version}/{self.split}"


@dataclass(frozen=True)
class Registered:
    """A version, the alias that it got, and why."""

    name: str
    version: str
    alias: str
    reason: str
    figures: Figures


def told(registered: Registered) -> str:
    """What a person reads of it; the file of runs is named where nothing else does, as jobs may run elsewhere."""
    where = "" if os.environ.get(URI_VARIABLE) else f"{URI_VARIABLE}={shlex.quote(default_tracking_uri())} "
    uri = shlex.quote(f"models:/{registered.name}@{registered.alias}")
    return (
        f"registered {registered.name} version {registered.version} as {registered.alias} ({registered.reason}): "
        f"{registered.figures.text}; serve it by `{where}mlflow models serve -m {uri} --env-manager local`"
    )


def judge(figures: Figures, champion: Version | None) -> tuple[str, str]:
    """The alias that a version of these figures deserves, and why.

    It is champion if there is none, or if it has fewer bits/dim on the very same images, given the same; it is never
    set against figures of other data.
    """
    if champion is None:
        return CHAMPION, "there was no champion"
    who = f"version {champion.number}, the champion,"
    try:
        other = Figures.model_validate(champion.tags)
    except ValidationError:
        return CHALLENGER, f"{who} has no figures to compare with; move the alias by hand"
    for key in ("data_version", "split", "split_digest", "given"):
        mine, theirs = getattr(figures, key), getattr(other, key)
        if mine != theirs:
            return CHALLENGER, f"{who} was measured with {key} {theirs}, this one with {mine}: not comparable"
    better = figures.bits_per_dim < other.bits_per_dim
    return (
        CHAMPION if better else CHALLENGER,
        f"{who} has {other.bits_per_dim:.6f} bits/dim on the same images, this one {figures.bits_per_dim:.6f}",
    )


def config_of_run(run: str) -> Config:
    """The configuration of the run that MLflow has under that id or name, as it trained.

    Raises:
        UserError: see `pipeline.registry.find_run`, and where its config.json is none of this version's.
    """
    found = find_run(default_tracking_uri(), run)
    config = config_of_json(found.config_json, f"RUN {run!r}: config.json of the run {found.run_id}")
    url, _, name = found.run_url.rpartition("/")
    return config.model_copy(update={"run": config.run.model_copy(update={"url": url, "name": name})})


def compared_on(config: Config) -> Manifest:
    """The manifest of evaluate.split, on whose images versions are compared.

    Raises:
        UserError: the model has no likelihood, by which they are compared, or the split isn't prepared as configured.
    """
    measure = config.empty_model().measure
    if measure != "nats":
        raise UserError(
            f"model.kind {config.model.kind}: measured by {measure}, it draws no images and has no bits/dim; register "
            "a run of another kind"
        )
    return load_manifest(config, config.evaluated_split)


def register(config: Config) -> Registered:
    """Make the run's newest checkpoint a version of tracking.register_as, else data.name, and give it its alias.

    It is evaluated on evaluate.split first, unless MLflow has that for its very step. The same weights become a version
    once: run again, only the alias is decided anew.

    Raises:
        UserError: the model is no density, there is no checkpoint, or MLflow does not answer.
    """
    manifest = compared_on(config)
    registry = Registry(default_tracking_uri(), config.tracking.register_as or config.data.name)
    with newest_sound(run_url_of(config)) as checkpoint:
        if checkpoint is None:
            raise UserError(
                f"{run_url_of(config)}: no checkpoint; train the run first, or correct run.url and run.name"
            )
        require_same_result(checkpoint, config, load_manifest(config, config.data.train_split).digest)
        figures = _figures(config, manifest, checkpoint, registry)
        run_id = registry.run_id(identity_of(config))
        if run_id is None:
            raise UserError(
                f"run.name {config.run.name}: MLflow at {default_tracking_uri()} has no such run; run jobs.train "
                "again, which delivers what the server missed"
            )
        version = registry.with_weights(run_id, checkpoint.state.files[AVERAGED_NAME])
        champion = registry.at(CHAMPION)
        if version and champion and version.number == champion.number:
            return Registered(registry.name, version.number, CHAMPION, "it was before", figures)
        alias, reason = judge(figures, champion)
        tags = figures.tags() | {
            "decision": f"{alias}: {reason}"[:5000], WEIGHTS_TAG: checkpoint.state.files[AVERAGED_NAME],
            "run_url": run_url_of(config), "model_kind": config.model.kind,
        }  # fmt: skip
        description = f"{config.run.name} at step {figures.step:,}: {figures.text}. {alias.capitalize()}: {reason}."
        if version:
            registry.describe(version, tags, description)
        else:
            version = registry.add(run_id, figures.step, _files(config, checkpoint), tags, description)
    registry.point(alias, version)
    if alias == CHAMPION:
        registry.unpoint(CHALLENGER, version)
    return Registered(registry.name, version.number, alias, reason, figures)


def _figures(config: Config, manifest: Manifest, checkpoint: Checkpoint, registry: Registry) -> Figures:
    """The measure of the checkpoint's own step, from MLflow or by an evaluation."""
    step, split = checkpoint.state.step, config.evaluated_split
    measured: dict[str, Any] = {}
    run_id = registry.run_id(identity_of(config))
    # A model trained without its condition now and then may have been evaluated either way under the same name.
    if run_id and not getattr(config.model, "condition_dropout", 0.0):
        kept = registry.metrics_at(run_id, step, [f"evaluate_{split}/{name}" for name in MEASURES])
        measured = {name.rpartition("/")[2]: value for name, value in kept.items()}
    if not measured.keys() >= set(MEASURES) or measured["images"] != manifest.num_images:
        measured = run_evaluation(config)
        if measured["step"] != step:
            raise UserError(
                f"run.name {config.run.name}: it went on from step {step} to {measured['step']} meanwhile; register it "
                "once it has ended"
            )
    return Figures(
        **{name: measured[name] for name in MEASURES},
        step=step,
        data_version=manifest.version,
        split=split,
        split_digest=manifest.digest,
        given=_given(config),
    )


def _given(config: Config) -> str:
    model = config.empty_model()
    if isinstance(model, PixelCNNAutoEncoder):
        return "vectors of the images"
    return "labels" if model.reads_labels and config.evaluate.conditional else "nothing"


def _files(config: Config, checkpoint: Checkpoint) -> ModelFiles:
    model, data = config.empty_model(), config.data
    black = np.zeros((data.channels, data.image_size, data.image_size), np.int64).tolist()
    example: dict[str, list[Any]] = {"seed": [0]}
    if isinstance(model, PixelCNNAutoEncoder):
        example |= {"vector": [[0.0] * model.decoder.body.condition_size]}
    elif model.reads_labels:
        example |= {"label": [0]}
    return ModelFiles(
        weights=checkpoint.folder / AVERAGED_NAME,
        config_json=config.model_dump_json(indent=1),
        example=example,
        probe=example | {"array": [black]},
    )
