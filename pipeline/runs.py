"""What a job does on the driver: check, launch, track the end, tell."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from models.trainable import DensityModel, TrainableModel
from pipeline.breakdown import Breakdown
from pipeline.checkpoint import AVERAGED_NAME, State, folder_name, last_sound, newest_sound, require_same_result
from pipeline.commit import git_commit
from pipeline.config import Config
from pipeline.drawing import draw_and_write, samples_url
from pipeline.errors import DivergedError, LastingError, StoppedError, UserError
from pipeline.evaluate import evaluate
from pipeline.launch import RayWorker, run_on_workers
from pipeline.learner import run_url_of
from pipeline.mailbox import Hear
from pipeline.manifest import MANIFEST_NAME, load_manifest, split_url
from pipeline.mlflow_run import end_run, last_checkpoint_told
from pipeline.precision import on_device
from pipeline.prepare import prepare
from pipeline.ray_cluster import driver_tags
from pipeline.report import Report
from pipeline.run_identity import RunIdentity, identify
from pipeline.sample_plan import require_fitting
from pipeline.storage import be_patient, exists, join, read, write
from pipeline.tracking import Tracker
from pipeline.train import train


def run_training(
    config: Config,
    *,
    hear: Hear | None = None,
    callbacks: Sequence[Any] = (),
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train the configuration on its cluster and give the last validation metrics.

    The embedded digits are prepared first where they are missing; all else must have been.

    Args:
        config: what is trained.
        hear: called with what rank 0 reports, for a trial of a search.
        callbacks: what else Ray Train's controller calls, for a trial of a search.
        tags: more tags of the MLflow run, for a trial of a search.

    Raises:
        UserError: what a person can put right; the MLflow run then ends as FAILED with it.
        StoppedError: SIGTERM or Ctrl-C came; the MLflow run then ends as KILLED.
    """
    require_fitting(config, config.empty_model())
    prepare_digits(config)
    identity = identity_of(config, tags=driver_tags() | dict(tags or {}))
    _newest_step(config)
    try:
        reached = run_on_workers(
            config,
            _train_on_worker,
            (config, identity),
            run_url_of(config),
            obeys=True,
            hear=hear,
            callbacks=callbacks,
        )
    except UserError as error:
        told = str(error)
        if isinstance(error, LastingError):
            told = f"{error}; {last_sound(run_url_of(config), last_checkpoint_told(identity))}"
        diverged = {"alert.diverging": told} if isinstance(error, DivergedError) else {}
        _end_as_failed(identity, {"error": told} | diverged)
        if told != str(error):
            raise UserError(told) from error
        raise
    except StoppedError:
        Tracker(identity).close("KILLED")
        raise
    if reached["step"] < config.train.steps:
        raise StoppedError(f"{config.run.name} stopped after step {reached['step']:,.0f} with a checkpoint")
    return reached


def _end_as_failed(identity: RunIdentity, tags: Mapping[str, str]) -> None:
    """Tell MLflow that the run failed, whether or not the run's folder can be read."""
    try:
        tracker = Tracker(identity)
    except UserError:  # storage refuses, which is what is told
        end_run(identity, "FAILED", dict(tags))
        return
    with contextlib.suppress(UserError):  # likewise, once MLflow has everything
        tracker.tags(dict(tags))
        tracker.close("FAILED")


def run_evaluation(config: Config) -> dict[str, Any]:
    """Evaluate the run's newest checkpoint on evaluate.split, and add the report to its folder and its MLflow run.

    Gives the step, the data version, the metrics without their prefix, and as `report` the report's folder.
    """
    manifest = load_manifest(config, config.evaluated_split)
    step = _require_checkpoint(config)
    url = join(run_url_of(config), "evaluation")
    found = run_on_workers(config, _evaluate_on_worker, config, url)
    report = Report(config=config, manifest=manifest, step=step, **found)
    name, metrics, files = f"{folder_name(step)}-{report.name}", report.metrics(), report.files()
    for file, content in files.items():
        write(join(url, name, file), content)
    tracker = Tracker(identity_of(config))
    tracker.metrics(step, metrics)
    for file, content in files.items():
        tracker.file(f"evaluation/{name}/{file}", content)
    tracker.close(None)
    told = {key.rsplit("/", 1)[1]: value for key, value in metrics.items()}
    return {"step": step, "data_version": manifest.version, "report": join(url, name)} | told


def run_sampling(config: Config) -> dict[str, Any]:
    """Draw from the run's newest checkpoint, and put the grid beside the others on its MLflow run."""
    require_fitting(config, config.empty_model())
    step = _require_checkpoint(config)
    drawn = run_on_workers(config, _draw_on_worker, config, join(run_url_of(config), "sampling"))
    tracker = Tracker(identity_of(config))
    tracker.image(step, f"drawn_from_seed_{config.sample.seed}", read(join(drawn["url"], "samples.png")))
    tracker.close(None)
    return drawn


def prepare_digits(config: Config) -> None:
    """Prepare the embedded digits where they are missing; any other data set must have been."""
    if config.data.source_format == "digits" and not exists(
        join(split_url(config, config.data.val_split), MANIFEST_NAME)
    ):
        prepare(config)


def identity_of(config: Config, url: str = "", name: str = "", tags: Mapping[str, str] | None = None) -> RunIdentity:
    """What MLflow knows the run by, with more tags; another folder and name are those of a search."""
    manifest = load_manifest(config, config.data.train_split)
    identity = identify(config, manifest, url or run_url_of(config), git_commit())
    return dataclasses.replace(identity, name=name or identity.name, tags=identity.tags | dict(tags or {}))


def mark_run(
    config: Config, tags: Mapping[str, str], status: str, measures: Mapping[int, dict[str, float]] | None = None
) -> None:
    """Tell a run's MLflow run from the driver what workers that were ended could not tell themselves.

    Args:
        config: the run's.
        tags: tags to set.
        status: how it ended.
        measures: metrics by step; those that the server has are passed over.
    """
    tracker = Tracker(identity_of(config, tags=tags))
    tracker.tags(dict(tags))
    for step, values in (measures or {}).items():
        tracker.metrics(step, values)
    tracker.close(status)


def _newest_step(config: Config) -> int | None:
    """The step of the run's newest sound checkpoint, which must fit the configuration; None where there is none."""
    with newest_sound(run_url_of(config)) as checkpoint:
        if checkpoint is None:
            return None
        require_same_result(checkpoint, config, load_manifest(config, config.data.train_split).digest)
        return checkpoint.state.step


def _require_checkpoint(config: Config) -> int:
    step = _newest_step(config)
    if step is None:
        raise UserError(
            f"{run_url_of(config)}: no checkpoint; run `python -m jobs.train {config.preset}` first, or correct "
            "run.url and run.name"
        )
    return step


def _train_on_worker(worker: RayWorker, argument: tuple[Config, RunIdentity]) -> dict[str, Any]:
    config, identity = argument
    be_patient()
    return dict(train(config, worker, identity))


def _evaluate_on_worker(worker: RayWorker, config: Config) -> dict[str, Any]:
    model, _ = _averaged_model(config, worker)
    manifest = load_manifest(config, config.evaluated_split)
    parts = Breakdown.empty(manifest, worker.device) if isinstance(model, DensityModel) else None
    started = time.perf_counter()
    measured = evaluate(config, manifest, model, worker, config.evaluate.batch_size, parts)
    seconds = time.perf_counter() - started
    counted = parts.cpu() if parts else None
    return {"measured": measured, "parts": counted, "seconds": seconds, "workers": worker.world_size}


def _draw_on_worker(worker: RayWorker, config: Config) -> dict[str, Any]:
    manifest = load_manifest(config, config.sample.split or config.data.val_split)
    model, state = _averaged_model(config, worker)
    weights = state.files[AVERAGED_NAME]
    url = samples_url(config, run_url_of(config), folder_name(state.step), weights)
    drawn = draw_and_write(config, model.eval(), manifest, worker, url, weights)
    return {"url": url, "count": drawn.count, "likelihood": drawn.likelihood} if drawn else {}


def _averaged_model(config: Config, worker: RayWorker) -> tuple[TrainableModel, State]:
    """The model with the averaged weights of the run's newest sound checkpoint."""
    model = config.build_model()
    with newest_sound(run_url_of(config)) as checkpoint:
        assert checkpoint is not None
        model.load_state_dict(checkpoint.weights(averaged=True))
        return on_device(model, worker.device), checkpoint.state
