"""The door to Ray Tune: trials that are training runs, chosen and stopped by Tune's searchers and schedulers.

Every report of a trial is kept in the search's folder. The same command later has each trial tell its kept reports
again before it trains on, so that scheduler and searcher know what they knew, and what has ended is not repeated.
"""

import contextlib
import json
import logging
import os
import signal
import warnings
from collections.abc import Iterator

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import driver_tags, start_cluster

# isort: split
import optuna
import ray
from ray import tune

from pipeline.arrow_storage import filesystem_of
from pipeline.config import Config, changed_result_keys
from pipeline.errors import StoppedError, UserError
from pipeline.mlflow_run import open_run
from pipeline.run_identity import RunIdentity
from pipeline.runs import identity_of, mark_run, prepare_digits
from pipeline.search.methods import scheduler, searching
from pipeline.search.pareto import pareto_png
from pipeline.search.places import places_freed
from pipeline.search.record import TrialRecord, load_records, ranked, table
from pipeline.search.recorder import Recorder
from pipeline.search.space import best_config, parse_space, search_name, search_url, trial_config
from pipeline.search.trial import Plan, run_trial
from pipeline.storage import MissingObjectError, join, read, write
from pipeline.tracking import Tracker

NO_CPU = {"cpu": 0, "memory": 1}
"""A trial's process takes a byte: with less than something it has no place, and a CPU would be its workers'."""
SAME_KEYS = ("search.budget", "search.budget_unit", "search.evaluations", "search.scheduler")


def run_search(config: Config) -> list[TrialRecord]:
    """Try what config.search says, and give the trials' records, the best first.

    The search's folder and its MLflow run then hold the table, the Pareto plot and the best configuration.

    Raises:
        UserError: the space or the cluster does not fit, the search's folder is of another one, MLflow can't be
            reached, or no trial got to an evaluation.
        StoppedError: SIGTERM or Ctrl-C came; the MLflow runs of the search and of trials under way end as KILLED.
    """
    space, cluster = parse_space(config), config.cluster
    if not cluster.num_workers:
        raise UserError("cluster.num_workers 0: each trial is a run with workers of its own; choose at least 1")
    if config.empty_model().measure != "nats":
        raise UserError(f"model.kind {config.model.kind} has no bits/dim to search by; choose a density model")
    prepare_digits(config)
    url = search_url(config)
    _require_same_search(config, url)
    start_cluster(cluster.num_workers * cluster.cpus_per_worker)
    identity = identity_of(config, url, search_name(config), driver_tags())
    tags = {name: identity.tags[name] for name in ("git_commit", "mlflow.source.git.commit", *driver_tags())}
    tags |= {"mlflow.parentRunId": open_run(identity), "search": search_name(config), "stopped_early": "false"}
    with places_freed() as taken:
        plan = Plan(config, space, url, identity.tracking_uri, tags, taken)
        recorder = Recorder(plan)
        with _stopping(recorder, identity):
            _tune(plan, recorder)
    records = ranked(load_records(url))
    if not any(record.last for record in records):
        told = next((record.error for record in records if record.error), "no trial began")
        raise UserError(f"no trial of {search_name(config)} got to an evaluation: {told}")
    _complete_stopped(plan, records)
    files = {
        "search/table.md": table(records).encode(),
        "search/pareto.png": pareto_png(records),
        "search/best.json": best_config(config, records[0].values).model_dump_json(indent=1).encode(),
    }
    tracker = Tracker(identity)
    for name, content in files.items():
        write(join(url, name.removeprefix("search/")), content)
        tracker.file(name, content)
    tracker.tags({"best_trial": records[0].name})
    tracker.close("FINISHED")
    return records


def _require_same_search(config: Config, url: str) -> None:
    """Keep what trials have in common in search.json, or compare with what is there."""
    try:
        before = Config.model_validate(json.loads(read(join(url, "search.json"))))
    except MissingObjectError:
        write(join(url, "search.json"), config.model_dump_json(indent=1).encode())
        return
    changed = changed_result_keys(before, config, *SAME_KEYS)
    if changed:
        raise UserError(
            f"search.name {search_name(config)}: its trials were trained otherwise: {', '.join(changed)}; use the old "
            "values, or another --search.name"
        )


def _complete_stopped(plan: Plan, records: list[TrialRecord]) -> None:
    """Tell MLflow the measures and the end of trials that were stopped early, which workers may have left untold."""
    for record in records:
        if record.state == "stopped early":
            config = trial_config(plan.config, record.values, record.name)
            batch_size = config.train.batch_size
            measures = {
                round(report.images_seen) // batch_size: {"val/bits_per_dim": report.bits_per_dim}
                for report in record.reports
            }
            mark_run(config, plan.tags | {"stopped_early": "true"}, "FINISHED", measures)


@contextlib.contextmanager
def _stopping(recorder: Recorder, identity: RunIdentity) -> Iterator[None]:
    """While it lasts SIGTERM, and so `ray job stop`, and Ctrl-C end the search, which MLflow hears of."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        recorder.killed()
        Tracker(identity).close("KILLED")
        raise StoppedError(f"{identity.name} stopped") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _tune(plan: Plan, recorder: Recorder) -> None:
    # A trial stays in the job's folder, and its reports are kept by Recorder; Tune's own files serve nobody. Its own
    # answer to Ctrl-C ends as if all had been tried.
    os.environ |= {
        "RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1",
    }  # fmt: skip
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", "Consider boosting PBT performance")  # a trial's training ends with its process
    filesystem, path = filesystem_of(plan.url)
    methods = searching(plan, plan.config.search.max_concurrent_trials or _places(plan.config))
    tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, plan=plan), NO_CPU),
        param_space=methods.pop("param_space", None),
        tune_config=tune.TuneConfig(scheduler=scheduler(plan), **methods),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[recorder],
            verbose=0,
            stop={"progress": 100.0},  # a weak member whose budget is spent would else go on from another's checkpoint
        ),
    ).fit()


def _places(config: Config) -> int:
    """Trials whose workers the cluster holds at the same time; more of them would wait for each other for ever."""
    there, cluster = ray.cluster_resources(), config.cluster
    places = there.get("CPU", 0) // (cluster.num_workers * cluster.cpus_per_worker)
    if cluster.use_gpu:
        places = min(places, there.get("GPU", 0) // cluster.num_workers)
    return max(1, int(places))
