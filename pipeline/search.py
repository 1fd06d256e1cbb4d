"""The door to Ray Tune: trials that are training runs, chosen and stopped by Tune's searchers and schedulers.

Every report of a trial is kept in the search's folder. The same command later has each trial tell its kept reports
again before it trains on, so that scheduler and searcher know what they knew, and what has ended is not repeated.
"""

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import driver_tags, first_line, start_cluster

# isort: split
import optuna
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.optuna import OptunaSearch

from pipeline.arrow_storage import filesystem_of
from pipeline.config import Config, changed_result_keys
from pipeline.cost import training_flops
from pipeline.errors import NoMemoryError, UserError
from pipeline.runs import identity_of, mark_run, prepare_digits, run_training
from pipeline.search_record import (
    ENDED,
    Report,
    TrialRecord,
    load_record,
    load_records,
    pareto_png,
    ranked,
    table,
)
from pipeline.search_space import (
    Choice,
    Space,
    best_config,
    parse_space,
    rounded,
    search_name,
    search_url,
    trial_config,
    trial_name,
)
from pipeline.storage import MissingObjectError, join, read, write
from pipeline.tracking import Tracker, open_run

TRIES = 200
"""How often a searcher may repeat itself before there is nothing new to try."""
NO_CPU = {"cpu": 0, "memory": 1}
"""A trial's driver takes a byte: with less than something it has no place, and a CPU would be its workers'."""
OBJECTIVES = {"bits_per_dim": "bits_per_dim", "flops": "gflop_per_image"}
SAME_KEYS = ("budget", "budget_unit", "evaluations")


@dataclass(frozen=True)
class Plan:
    """What trials must know of their search; it travels to them."""

    config: Config
    space: Space
    url: str
    tracking_uri: str
    tags: dict[str, str]

    def named(self, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """A trial's name and its rounded values."""
        values = rounded(self.space, values)
        return trial_name(values), values


def run_search(config: Config) -> list[TrialRecord]:
    """Try what config.search says, and give the trials' records, the best first.

    The search's folder and its MLflow run then hold the table, the Pareto plot and the best configuration.

    Raises:
        UserError: the space or the cluster does not fit, the search's folder is of another one, MLflow can't be
            reached, or no trial got to an evaluation.
    """
    space, cluster = parse_space(config), config.cluster
    if not cluster.num_workers:
        raise UserError("cluster.num_workers 0: each trial is a run with workers of its own; choose at least 1")
    if config.empty_model().measure != "nats":
        raise UserError(f"model.kind {config.model.kind} has no bits/dim to search by; choose a density model")
    prepare_digits(config)
    url = search_url(config)
    _require_same_search(config, url)
    identity = identity_of(config, url, search_name(config))
    identity = dataclasses.replace(identity, tags=identity.tags | driver_tags())
    tags = {name: identity.tags[name] for name in ("git_commit", "mlflow.source.git.commit", *driver_tags())}
    tags |= {"mlflow.parentRunId": open_run(identity), "search": search_name(config), "stopped_early": "false"}
    plan = Plan(config, space, url, identity.tracking_uri, tags)
    start_cluster(cluster.num_workers * cluster.cpus_per_worker)
    _tune(plan)
    records = ranked(load_records(url))
    if not any(record.last for record in records):
        told = next((record.error for record in records if record.error), "no trial began")
        raise UserError(f"no trial of {search_name(config)} got to an evaluation: {told}")
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
    changed = changed_result_keys(before, config)
    for key in SAME_KEYS:
        was, now = getattr(before.search, key), getattr(config.search, key)
        if was != now:
            changed.append(f"search.{key} (was {was!r}, now {now!r})")
    if changed:
        raise UserError(
            f"search.name {search_name(config)}: its trials were trained otherwise: {', '.join(changed)}; use the old "
            "values, or another --search.name"
        )


def _tune(plan: Plan) -> None:
    # A trial stays in the job's folder, and its reports are kept by Recorder; Tune's own files serve nobody.
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search, filesystem_and_path = plan.config.search, filesystem_of(plan.url)
    is_grid = search.searcher == "grid"
    concurrent = search.max_concurrent_trials or _places(plan.config)
    param_space = {
        key: tune.grid_search(list(domain.values)) for key, domain in plan.space.items() if isinstance(domain, Choice)
    }
    tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, plan=plan), NO_CPU),
        param_space=param_space if is_grid else None,
        tune_config=tune.TuneConfig(
            search_alg=BasicVariantGenerator(max_concurrent=concurrent) if is_grid else _Distinct(plan),
            max_concurrent_trials=None if is_grid else concurrent,
            scheduler=_scheduler(plan.config),
            num_samples=1 if is_grid else search.num_trials,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=filesystem_and_path[1],
            storage_filesystem=filesystem_and_path[0],
            callbacks=[Recorder(plan)],
            verbose=0,
        ),
    ).fit()


def _places(config: Config) -> int:
    """Trials whose workers the cluster holds at the same time; more of them would wait for each other for ever."""
    there, cluster = ray.cluster_resources(), config.cluster
    places = there.get("CPU", 0) // (cluster.num_workers * cluster.cpus_per_worker)
    if cluster.use_gpu:
        places = min(places, there.get("GPU", 0) // cluster.num_workers)
    return max(1, int(places))


def _scheduler(config: Config) -> TrialScheduler:
    """Progress is percent of the budget, so trials are compared at equal images or FLOPs."""
    search = config.search
    first = 100.0 * search.first_rung
    of = {"time_attr": "progress", "metric": "bits_per_dim", "mode": "min"}
    if search.scheduler == "asha":
        return ASHAScheduler(**of, max_t=100, grace_period=first, reduction_factor=search.reduction_factor)
    return MedianStoppingRule(**of, grace_period=first) if search.scheduler == "median" else FIFOScheduler()


class _Distinct(OptunaSearch):
    """Optuna's samplers, which here never try the same values twice; recorded trials come first."""

    def __init__(self, plan: Plan) -> None:
        search = plan.config.search
        metrics = [OBJECTIVES[objective] for objective in search.objectives]
        samplers = {"random": optuna.samplers.RandomSampler, "optuna": optuna.samplers.TPESampler}
        super().__init__(
            space=_domains(plan.space),
            metric=metrics if len(metrics) > 1 else metrics[0],
            mode=["min"] * len(metrics) if len(metrics) > 1 else "min",
            points_to_evaluate=[record.values for record in load_records(plan.url)] or None,
            sampler=samplers[search.searcher](seed=search.seed),
        )
        self._plan, self._names = plan, set[str]()

    def suggest(self, trial_id: str) -> Any:
        """Values that were not tried, or that nothing is left to try."""
        for _ in range(TRIES):
            values = super().suggest(trial_id)
            name, _ = self._plan.named(values)
            if name not in self._names:
                self._names.add(name)
                return values
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)
        return Searcher.FINISHED


def _domains(space: Space) -> dict[str, Any]:
    domains: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, Choice):
            domains[key] = tune.choice(list(domain.values))
        elif domain.is_whole:
            domains[key] = tune.randint(int(domain.low), int(domain.high) + 1)
        else:
            domains[key] = (tune.loguniform if domain.is_log else tune.uniform)(domain.low, domain.high)
    return domains


def _trial(values: dict[str, Any], plan: Plan) -> None:
    """One trial's driver: tell again what is kept, then train on; it takes no CPU beside its workers'."""
    os.environ["MLFLOW_TRACKING_URI"] = plan.tracking_uri
    name, values = plan.named(values)
    config, record = trial_config(plan.config, values), load_record(plan.url, name)
    gflop = training_flops(config) / 1e9
    for report in record.reports if record else []:
        tune.report(report.model_dump() | {"gflop_per_image": gflop})
    if record and record.state in ENDED:
        return
    tell = _TellTune(config.train.steps * config.train.batch_size, gflop)
    metrics = run_training(config, callbacks=[tell], tags=plan.tags)
    tune.report(tell.report(metrics))


class _TellTune(TuneReportCallback):
    """Hands evaluations to Tune, all but the last, which may end the trial and so comes after its last checkpoint."""

    def __init__(self, images: int, gflop: float) -> None:
        super().__init__()
        self._images, self._gflop = images, gflop

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Called by Ray Train's controller."""
        report = self.report(metrics[0])
        if report and report["progress"] < 100:
            super().after_report(run_context, [report], checkpoint)

    def report(self, metrics: dict[str, float]) -> dict[str, float]:
        """What Tune is told of a run's metrics; nothing where they hold no evaluation."""
        if "val/bits_per_dim" not in metrics:
            return {}
        seen = metrics["images_seen"]
        return {
            "bits_per_dim": metrics["val/bits_per_dim"],
            "images_seen": seen,
            "pflop": seen * self._gflop / 1e6,
            "progress": 100.0 * seen / self._images,
            "gflop_per_image": self._gflop,
        }


class Recorder(tune.Callback):
    """Keeps each trial's reports and end in the search's folder and on its MLflow run, and tells them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._records = {record.name: record for record in load_records(plan.url)}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Add what is new; a report that was kept before is no news."""
        record = self._record(trial)
        if record.state in ENDED or (record.last and result["images_seen"] <= record.last.images_seen):
            return
        report = Report(**{name: result[name] for name in Report.model_fields})
        record.reports.append(report)
        record.state, record.error = "running", ""
        record.seconds += result["time_this_iter_s"]
        record.save(self._plan.url)
        print(f"{record.name}  {report.progress:.0f}% of its budget  {report.bits_per_dim:.4f} bits/dim", flush=True)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trial came to its end, or was stopped."""
        record = self._record(trial)
        finished = record.last is not None and record.last.progress >= 100
        self._end(record, "finished" if finished else "stopped early")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trial failed, or its driver was killed."""
        error = trial.get_pickled_error()
        error = getattr(error, "cause", None) or error
        record = self._record(trial)
        if record.state not in ENDED:
            record.error = first_line(error) if error else "the trial's driver was lost"
        no_memory = isinstance(error, NoMemoryError | ray.exceptions.OutOfMemoryError)
        self._end(record, "out of memory" if no_memory else "failed")

    def _record(self, trial: Any) -> TrialRecord:
        name, values = self._plan.named(trial.config)
        if name not in self._records:
            gflop = training_flops(trial_config(self._plan.config, values)) / 1e9
            record = TrialRecord(name=name, number=len(self._records), values=values, gflop_per_image=gflop)
            self._records[name] = record
        return self._records[name]

    def _end(self, record: TrialRecord, state: Any) -> None:
        if record.state in ENDED:
            return
        record.state = state
        record.save(self._plan.url)
        stopped = state == "stopped early"
        tags = self._plan.tags | {"trial_state": state, "stopped_early": str(stopped).lower()}
        mark_run(trial_config(self._plan.config, record.values), tags, "FINISHED" if stopped else None)
        print(f"{record.name}  {state}{f': {record.error}' if record.error else ''}", flush=True)
