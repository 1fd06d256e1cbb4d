from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.entities import Run

from pipeline.config import Config
from pipeline.runs import identity_of
from pipeline.search.record import Report, load_records
from pipeline.search.recorder import Recorder
from pipeline.search.run import _complete_stopped
from pipeline.search.space import trial_config
from pipeline.search.trial import Plan
from pipeline.tracking import Tracker
from tests.pipeline.search.test_methods import plan_of
from tests.pipeline.test_tracking import runs_of
from tests.pipeline.test_train import changed

VALUES = {"model.num_layers": 1}
TRIAL = SimpleNamespace(trial_id="some_00000", config=VALUES, pickled_error_file="")
REPORT = Report(bits_per_dim=2.5, images_seen=32.0, pflop=1e-6, progress=50.0)


@pytest.fixture
def plan(digits: Config) -> Plan:
    return plan_of(changed(digits, search={"space": ("model.num_layers=choice(1,2)",)}))


@pytest.fixture
def population(digits: Config) -> Plan:
    space = {"space": ("train.learning_rate=loguniform(1e-6,1e-2)",), "searcher": "random", "scheduler": "pbt"}
    return plan_of(changed(digits, search=space))


@pytest.fixture
def member() -> SimpleNamespace:
    return SimpleNamespace(trial_id="some_00000", config={"train.learning_rate": 0.001}, pickled_error_file="")


def begun(plan: Plan) -> Recorder:
    """A recorder that Tune has told of a trial's start."""
    recorder = Recorder(plan)
    recorder.on_trial_start(0, [], TRIAL)
    return recorder


def runs(plan: Plan) -> list[Run]:
    return runs_of(identity_of(plan.config))


def test_a_trial_has_its_run_before_its_function_can_make_one(plan: Plan) -> None:
    recorder = begun(plan)
    (made,) = runs(plan)
    assert (made.info.run_name, made.info.status, made.data.tags["search"]) == ("layers1", "RUNNING", "some")
    told = REPORT.model_dump() | {"time_this_iter_s": 1.0}
    recorder.on_trial_result(1, [], TRIAL, told)
    recorder.on_trial_complete(1, [], TRIAL)
    Tracker(identity_of(trial_config(plan.config, VALUES, "layers1"))).close(None)  # a worker that tells something late
    (run,) = runs(plan)
    assert run.info.run_id == made.info.run_id
    assert (run.info.status, run.data.tags["stopped_early"]) == ("FINISHED", "true")
    assert [record.state for record in load_records(plan.url)] == ["stopped early"]


def test_a_trial_whose_process_was_killed_has_failed_in_mlflow_too_until_it_is_tried_again(plan: Plan) -> None:
    recorder = begun(plan)
    recorder.on_trial_error(1, [], TRIAL)
    (record,), (run,) = load_records(plan.url), runs(plan)
    assert (record.state, record.error) == ("failed", "the trial's process was lost")
    assert (run.info.status, run.data.tags["trial_state"]) == ("FAILED", "failed")
    again = Tracker(identity_of(trial_config(plan.config, VALUES, "layers1")))
    again.running()
    again.close(None)
    assert [run.info.status for run in runs(plan)] == ["RUNNING"]


def test_a_stopped_trial_that_a_worker_called_running_at_the_last_moment_ends_with_the_search(plan: Plan) -> None:
    recorder = begun(plan)
    recorder.on_trial_result(1, [], TRIAL, REPORT.model_dump() | {"time_this_iter_s": 1.0})
    recorder.on_trial_complete(1, [], TRIAL)
    (run,) = runs(plan)
    mlflow.MlflowClient(plan.tracking_uri).update_run(run.info.run_id, status="RUNNING")
    _complete_stopped(plan, load_records(plan.url))
    (run,) = runs(plan)
    assert (run.info.status, run.data.metrics["val/bits_per_dim"]) == ("FINISHED", 2.5)


def test_what_has_ended_is_not_begun_again(plan: Plan) -> None:
    recorder = begun(plan)
    recorder.on_trial_result(1, [], TRIAL, REPORT.model_dump() | {"time_this_iter_s": 1.0})
    recorder.on_trial_complete(1, [], TRIAL)
    (made,) = runs(plan)
    mlflow.MlflowClient(plan.tracking_uri).delete_run(made.info.run_id)
    begun(plan)
    assert runs(plan) == []


def test_a_measure_stays_with_the_values_that_it_is_of(
    population: Plan, member: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tune changes a weak member's values before it tells of the report that it was weak at."""
    recorder = Recorder(population)
    recorder.on_trial_start(0, [], member)
    member.config = {"train.learning_rate": 0.002}
    recorder.on_trial_result(1, [], member, REPORT.model_dump() | {"time_this_iter_s": 1.0})
    (measured,) = load_records(population.url)
    assert (measured.values, measured.last) == ({"train.learning_rate": 0.001}, REPORT)
    assert "goes on from another member's" not in capsys.readouterr().out
    recorder.on_trial_start(1, [], member)
    told = "member0  goes on from another member's checkpoint: train.learning_rate 0.001 -> 0.002"
    assert told in capsys.readouterr().out
    later = REPORT.model_copy(update={"progress": 100.0, "images_seen": 64.0})
    recorder.on_trial_result(2, [], member, later.model_dump() | {"time_this_iter_s": 1.0})
    (measured,) = load_records(population.url)
    assert (measured.values, measured.last) == ({"train.learning_rate": 0.002}, later)


def test_a_member_that_goes_on_from_an_earlier_checkpoint_is_measured_anew_from_there(
    population: Plan, member: SimpleNamespace
) -> None:
    recorder = Recorder(population)
    weak = [REPORT.model_copy(update={"images_seen": seen, "bits_per_dim": 3.0}) for seen in (16.0, 32.0, 48.0)]
    for report in [*weak, REPORT]:
        recorder.on_trial_result(1, [], member, report.model_dump() | {"time_this_iter_s": 2.0})
    (record,) = load_records(population.url)
    assert record.reports == [weak[0], REPORT]
    assert record.seconds == 8.0


def test_a_report_that_is_told_again_is_no_news(plan: Plan) -> None:
    recorder = begun(plan)
    later = REPORT.model_copy(update={"images_seen": 48.0})
    for report in (REPORT, later, REPORT, later):
        recorder.on_trial_result(1, [], TRIAL, report.model_dump() | {"time_this_iter_s": 2.0})
    (record,) = load_records(plan.url)
    assert record.reports == [REPORT, later]
    assert record.seconds == 4.0


def test_neither_a_server_that_is_away_nor_missing_data_ends_the_search(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    begun(plan)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", plan.tracking_uri)
    Path(plan.config.data.url, "train", "manifest.json").unlink()
    begun(plan)
    assert not (Path(plan.url) / "trials").exists()
