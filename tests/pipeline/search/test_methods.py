import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.ray_cluster import ray  # noqa: F401  decides on a token before Ray is imported

# isort: split
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search import Searcher

from pipeline.checkpoint import State
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.learner import run_url_of
from pipeline.run_identity import default_tracking_uri
from pipeline.search.methods import _members, scheduler, searching
from pipeline.search.record import Report, TrialRecord
from pipeline.search.space import member_name, parse_space, search_url, trial_config, trial_name
from pipeline.search.trial import Plan
from pipeline.storage import join, write
from tests.pipeline.search.test_space import searching as configured

RATE = "train.learning_rate=loguniform(1e-4,1e-2)"
DEPTH = "model.num_layers=choice(2,4,6)"


def plan_of(config: Config) -> Plan:
    """The configuration's search, tracked in the test's own MLflow, with nobody to tell of places."""
    nobody: Any = None
    return Plan(config, parse_space(config), search_url(config), default_tracking_uri(), {"search": "some"}, nobody)


def searcher_of(config: Config) -> Any:
    return searching(plan_of(config), concurrent=1)["search_alg"]


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_no_values_are_tried_twice_and_there_is_an_end(tmp_path: Path, searcher: str) -> None:
    found = searcher_of(configured(tmp_path, DEPTH, searcher=searcher))
    depths = []
    for number in range(3):
        values = found.suggest(f"t_{number}")
        depths.append(values["model.num_layers"])
        found.on_trial_complete(f"t_{number}", {"bits_per_dim": 3.0, "gflop_per_image": 1.0})
    assert sorted(depths) == [2, 4, 6]
    assert found.suggest("t_3") == Searcher.FINISHED


def test_the_same_seed_draws_the_same_values(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[float]:
        found = searcher_of(configured(tmp_path, RATE, searcher="random", seed=seed))
        return [found.suggest(f"t_{number}")["train.learning_rate"] for number in range(4)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert all(1e-4 <= rate <= 1e-2 for rate in drawn(1))


def test_tpe_tries_more_where_bits_were_fewer(tmp_path: Path) -> None:
    found = searcher_of(configured(tmp_path, "model.dropout=uniform(0,0.9)", searcher="optuna"))
    tried = []
    for number in range(40):
        tried.append(found.suggest(f"t_{number}")["model.dropout"])
        found.on_trial_complete(f"t_{number}", {"bits_per_dim": 3.0 + abs(tried[-1] - 0.2)})
    later = tried[20:]
    assert sum(abs(value - 0.2) for value in later) / len(later) < 0.15 < 0.45 - 0.2


def test_two_objectives_reach_the_searcher(tmp_path: Path) -> None:
    found = searcher_of(configured(tmp_path, DEPTH, searcher="optuna", objectives=("bits_per_dim", "flops")))
    for number in range(3):
        depth = found.suggest(f"t_{number}")["model.num_layers"]
        found.on_trial_complete(f"t_{number}", {"bits_per_dim": 4.0 - 0.1 * depth, "gflop_per_image": float(depth)})
    assert sorted(trial.values for trial in found._ot_study.best_trials) == [[3.4, 6.0], [3.6, 4.0], [3.8, 2.0]]


def test_what_was_tried_before_comes_first(tmp_path: Path) -> None:
    config = configured(tmp_path, RATE, searcher="random", seed=3)
    values = {"train.learning_rate": 0.00123}
    report = Report(bits_per_dim=3.0, images_seen=32, pflop=0.1, progress=100)
    TrialRecord(
        name=trial_name(values), number=0, values=values, gflop_per_image=1.0, reports=[report], state="finished"
    ).save(search_url(config))
    assert searcher_of(config).suggest("t_0") == values


@pytest.mark.parametrize(
    ("name", "kind"), [("asha", ASHAScheduler), ("median", MedianStoppingRule), ("none", FIFOScheduler)]
)
def test_schedulers_by_their_names(tmp_path: Path, name: str, kind: type) -> None:
    assert isinstance(scheduler(plan_of(configured(tmp_path, DEPTH, scheduler=name))), kind)


def test_members_go_on_with_the_values_of_their_own_checkpoints(tmp_path: Path) -> None:
    config = configured(tmp_path, RATE, scheduler="pbt", searcher="random", num_trials=3)
    first = [member["train.learning_rate"] for member in _members(plan_of(config))]
    changed = trial_config(config, {"train.learning_rate": 0.00567}, member_name(1))
    state = State(
        step=4, images_seen=128, random_seed=0, averaged_updates=4, config=json.loads(changed.model_dump_json()),
        manifest_digest="", undelivered=[], val_measure=None,
    )  # fmt: skip
    write(join(run_url_of(changed), "step-000000004", "checkpoint.json"), state.model_dump_json().encode())
    again = [member["train.learning_rate"] for member in _members(plan_of(config))]
    assert again == [first[0], 0.00567, first[2]]
    assert searching(plan_of(config), concurrent=3)["num_samples"] == 3
    with pytest.raises(UserError, match=r"search\.num_trials 3: a population trains together.* places for 2 trials"):
        searching(plan_of(config), concurrent=2)
    assert len(set(first)) == 3


def test_changed_values_stay_in_their_range(tmp_path: Path) -> None:
    population = scheduler(plan_of(configured(tmp_path, RATE, scheduler="pbt", searcher="random")))
    assert isinstance(population, PopulationBasedTraining)
    assert population._custom_explore_fn({"train.learning_rate": 0.0123456}) == {"train.learning_rate": 0.01}
    assert population._custom_explore_fn({"train.learning_rate": 0.00123456}) == {"train.learning_rate": 0.001235}
