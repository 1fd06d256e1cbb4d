"""Ray Tune's population based training, with trials that report what a test needs and train nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ray_cluster import ray, start_cluster

# isort: split
from pipeline.config import Config
from pipeline.search import run
from pipeline.search.record import TrialRecord, load_record, load_records
from pipeline.search.space import trial_config
from pipeline.search.trial import Plan, Telling
from tests.conftest import PATIENCE, wait_until
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
    yield plan_of(changed(digits, search=search))
    ray.shutdown()


def weak_ends_first(values: dict[str, Any], plan: Plan) -> None:
    """A trial's function: member1 is at 60% of its budget, and better, when member0 spends the last of its own."""
    name, values = plan.named(run.tune.get_context().get_trial_id(), values)
    telling = Telling(trial_config(plan.config, values, name), is_population=True)
    starts = Path(plan.url, f"{name}-starts")
    with starts.open("a") as file:
        file.write("x")

    def tell(bits_per_dim: float, progress: float) -> None:
        telling.tell({"bits_per_dim": bits_per_dim, "images_seen": progress, "pflop": 0.0, "progress": progress})

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
    weak_starts = Path(plan.url, "member0-starts")
    wait_until(
        lambda: weak_starts.read_text() == "xx" or ended(load_record(plan.url, "member0")), PATIENCE, "member0's end"
    )
    tell(2.9, 100.0)


def ended(record: TrialRecord | None) -> bool:
    return record is not None and record.state == "finished"


def test_who_has_spent_its_budget_does_not_train_on_from_another(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_trial", weak_ends_first)
    Path(plan.url).mkdir(parents=True)
    run._tune(plan)
    assert {record.name: (record.state, record.last.bits_per_dim) for record in load_records(plan.url)} == {
        "member0": ("finished", 4.0), "member1": ("finished", 2.9),
    }  # fmt: skip
    assert [Path(plan.url, f"member{number}-starts").read_text() for number in range(2)] == ["x", "x"]
