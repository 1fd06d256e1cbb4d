"""Keeps what becomes of a search's trials, as Ray Tune tells it, in the search's folder and in MLflow."""

import contextlib
from pathlib import Path
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import first_line

# isort: split
import ray
import ray.cloudpickle
from ray import tune

from pipeline.cost import training_flops
from pipeline.errors import NoMemoryError, UserError
from pipeline.mlflow_run import make_run
from pipeline.runs import identity_of, mark_run
from pipeline.search.record import ENDED, Report, TrialRecord, TrialState, load_records
from pipeline.search.space import is_population, trial_config
from pipeline.search.trial import Plan

STATUS = {"finished": "FINISHED", "stopped early": "FINISHED", "failed": "FAILED", "out of memory": "FAILED"}
"""Of a trial's MLflow run; one that was stopped, or whose process was killed, can't say it itself."""


class Recorder(tune.Callback):
    """Keeps each trial's reports and end, and tells them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._records = {record.name: record for record in load_records(plan.url)}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune calls it before the trial's function: a trial that is stopped at once has its one MLflow run already.

        A population's member whose values were changed starts again with them, not before.
        """
        name, values = self._plan.named(trial.trial_id, trial.config)
        record = self._record(trial)
        if record.state in ENDED:
            return
        if record.values != values:
            changed = ", ".join(f"{key} {record.values[key]} -> {value}" for key, value in values.items())
            print(f"{name}  goes on from another member's checkpoint: {changed}", flush=True)
            record.values = values
        with contextlib.suppress(UserError):  # which the trial meets, too, and fails with
            make_run(identity_of(trial_config(self._plan.config, values, name), tags=self._plan.tags))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Add what is new; a report that was kept before is no news.

        A population's member tells none again: it may go on from another one's earlier checkpoint, and is measured anew
        from there.
        """
        record = self._record(trial)
        report = Report(**{name: result[name] for name in Report.model_fields})
        earlier = [kept for kept in record.reports if kept.images_seen < report.images_seen]
        is_told_again = len(earlier) < len(record.reports) and not is_population(self._plan.config)
        if record.state in ENDED or is_told_again:
            return
        record.reports = [*earlier, report]
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
        """The trial failed, or its process was killed."""
        error, record = _error_of(trial), self._record(trial)
        if record.state not in ENDED:
            record.error = first_line(error) if error else "the trial's process was lost"
        no_memory = isinstance(error, NoMemoryError | ray.exceptions.OutOfMemoryError)
        self._end(record, "out of memory" if no_memory else "failed")

    def killed(self) -> None:
        """Tell MLflow that trials under way were ended; their records stay, as the same command goes on with them."""
        for record in self._records.values():
            if record.state == "running":
                self._mark(record, "KILLED")

    def _record(self, trial: Any) -> TrialRecord:
        """The trial's record, made where there is none."""
        name, values = self._plan.named(trial.trial_id, trial.config)
        record = self._records.get(name)
        if record is None:
            gflop = training_flops(trial_config(self._plan.config, values, name)) / 1e9
            record = TrialRecord(name=name, number=len(self._records), values=values, gflop_per_image=gflop)
            self._records[name] = record
        return record

    def _end(self, record: TrialRecord, state: TrialState) -> None:
        if record.state in ENDED:
            return
        record.state = state
        record.save(self._plan.url)
        self._mark(record, STATUS[state], trial_state=state, stopped_early=str(state == "stopped early").lower())
        print(f"{record.name}  {state}{f': {record.error}' if record.error else ''}", flush=True)

    def _mark(self, record: TrialRecord, status: str, **tags: str) -> None:
        """Tell the trial's MLflow run how it ended."""
        mark_run(trial_config(self._plan.config, record.values, record.name), self._plan.tags | tags, status)


def _error_of(trial: Any) -> BaseException | None:
    """What the trial ended with; read where Tune writes it first, as it is in storage only later."""
    path = Path(trial.pickled_error_file) if trial.pickled_error_file else None
    if path is None or not path.exists():
        return None
    error = ray.cloudpickle.loads(path.read_bytes())
    return getattr(error, "cause", None) or error
