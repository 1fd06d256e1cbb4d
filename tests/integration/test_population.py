"""Ray Tune's part of a search, with trials that report what a test needs and train nothing."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ray_cluster import ray, start_cluster

# isort: split
from pipeline.config import Config
from pipeline.errors import StoppedError
from pipeline.runs import identity_of
from pipeline.search import run
from pipeline.search.record import TrialRecord, load_record, load_records
from pipeline.search.recorder import Recorder
from pipeline.search.space import trial_config
from pipeline.search.trial import Plan, Telling
from tests.conftest import PATIENCE, wait_until
from tests.integration.test_search import runs_by_name
from tests.pipeline.search.test_methods import plan_of
from tests.pipeline.test_train import changed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def plan(digits: Config) -> Iterator[Plan]:
    search = {
        "space": ("train.learning_rate=loguniform(1e-6,1e-2)",), "searcher": "random", "num_trials": 2,
        "max_concurrent_trials": 2, "scheduler": "pbt", "perturbation_interval": 0.5,
    }  # fmt: skip
    start_cluster(2)
    made = plan_of(changed(digits, search=search))
    Path(made.url).mkdir(parents=True)
    yield made
    ray.shutdown()


def member(values: dict[str, Any], plan: Plan) -> tuple[str, Callable[[float, float], None]]:
    """A member's name, and how it tells bits/dim at a percentage of its budget; its start is counted."""
    name, values = plan.named(run.tune.get_context().get_trial_id(), values)
    telling = Telling(trial_config(plan.config, values, name), is_population=True)
    with starts_of(plan, name).open("a") as file:
        file.write("x")

    def tell(bits_per_dim: float, progress: float) -> None:
        telling.tell({"bits_per_dim": bits_per_dim, "images_seen": progress, "pflop": 0.0, "progress": progress})

    return name, tell


def starts_of(plan: Plan, name: str) -> Path:
    """The file with a letter for each start of a member."""
    return Path(plan.url, f"{name}-starts")


def weak_ends_first(values: dict[str, Any], plan: Plan) -> None:
    """A trial's function: member1 is at 60% of its budget, and better, when member0 spends the last of its own."""
    name, tell = member(values, plan)
    weak_told, strong_told = Path(plan.url, "weak-told"), Path(plan.url, "strong-told")
    if name == "member0":
        tell(4.1, 50.0)
        weak_told.touch()
        wait_until(strong_told.exists, PATIENCE, "member1's report")
        tell(4.0, 100.0)
        return
    wait_until(weak_told.exists, PATIENCE, "member0's report")
    tell(3.0, 60.0)
    strong_told.touch()
    weak_starts = starts_of(plan, "member0")
    wait_until(
        lambda: weak_starts.read_text() == "xx" or ended(load_record(plan.url, "member0")), PATIENCE, "member0's end"
    )
    tell(2.9, 100.0)


def strong_reports_while_weak_is_away(values: dict[str, Any], plan: Plan) -> None:
    """A trial's function: member1 reports when member0 has been told to go on from it, which takes a new process."""
    name, tell = member(values, plan)
    weak_told, strong_told = Path(plan.url, "weak-told"), Path(plan.url, "strong-told")
    if name == "member0":
        if not strong_told.exists():
            tell(4.1, 25.0)
            weak_told.touch()
            wait_until(strong_told.exists, PATIENCE, "member1's report")
            tell(4.0, 50.0)
        tell(2.8, 100.0)
        return
    wait_until(weak_told.exists, PATIENCE, "member0's report")
    tell(3.0, 50.0)
    strong_told.touch()
    wait_until(lambda: last_progress(plan, "member0") >= 50.0, PATIENCE, "Tune's answer to member0")
    tell(2.9, 75.0)
    tell(2.9, 100.0)


def last_progress(plan: Plan, name: str) -> float:
    """Percent of its budget at a member's last report that is kept, which is once Tune has answered it."""
    record = load_record(plan.url, name)
    return record.last.progress if record and record.last else 0.0


def tells_once_and_waits(values: dict[str, Any], plan: Plan) -> None:
    """A trial's function that doesn't end by itself."""
    _, tell = member(values, plan)
    tell(4.1, 25.0)
    time.sleep(PATIENCE)


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_stopped_is_none_that_has_ended(
    number: signal.Signals, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_trial", tells_once_and_waits)

    def stop() -> None:
        wait_until(lambda: len(load_records(plan.url)) == 2, PATIENCE, "both members' reports")
        os.kill(os.getpid(), number)

    recorder, identity = Recorder(plan), identity_of(plan.config, plan.url, "some")
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(StoppedError, match="some stopped"), run._stopping(recorder, identity):
        run._tune(plan, recorder)
    told = {name: found.info.status for name, found in runs_by_name().items()}
    assert told == {"some": "KILLED", "member0": "KILLED", "member1": "KILLED"}
    assert {record.state for record in load_records(plan.url)} == {"running"}


def ended(record: TrialRecord | None) -> bool:
    return record is not None and record.state == "finished"


def test_who_has_spent_its_budget_does_not_train_on_from_another(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_trial", weak_ends_first)
    run._tune(plan, Recorder(plan))
    assert {record.name: (record.state, record.last.bits_per_dim) for record in load_records(plan.url)} == {
        "member0": ("finished", 4.0), "member1": ("finished", 2.9),
    }  # fmt: skip
    assert [starts_of(plan, f"member{number}").read_text() for number in range(2)] == ["x", "x"]


def test_who_trains_on_keeps_its_process_while_another_is_started_anew(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(plan, config=changed(plan.config, search={"perturbation_interval": 0.25}))
    monkeypatch.setattr(run, "run_trial", strong_reports_while_weak_is_away)
    run._tune(plan, Recorder(plan))
    assert [starts_of(plan, f"member{number}").read_text() for number in range(2)] == ["xx", "x"]
    assert {record.state for record in load_records(plan.url)} == {"finished"}
