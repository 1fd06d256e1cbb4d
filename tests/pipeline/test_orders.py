"""What a run is told while it trains, and what it does then: in this process, by a worker that is told things."""

from dataclasses import dataclass, field

import mlflow
import pytest

from pipeline import orders
from pipeline.checkpoint import newest_sound, steps_below
from pipeline.config import Config
from pipeline.learner import run_url_of
from pipeline.told import Orders, PreemptedError
from pipeline.train import train
from tests.conftest import LocalWorker
from tests.pipeline.test_train import assert_same, changed, final_weights, fit, identity_of


@dataclass(frozen=True)
class ToldWorker(LocalWorker):
    """Is told something from a step on; it counts the steps by how often it is asked."""

    told: Orders = Orders.NONE
    preempted: bool = False
    after: int = 0
    asked: list[int] = field(default_factory=list)

    def orders(self) -> Orders:
        self.asked.append(1)
        return self.told if len(self.asked) > self.after else Orders.NONE

    def is_preempted(self) -> bool:
        return self.preempted and len(self.asked) > self.after

    def hold(self) -> None:
        raise HeldError


class HeldError(Exception):
    """Held here."""


def saved_step(config: Config) -> int:
    with newest_sound(run_url_of(config)) as checkpoint:
        assert checkpoint is not None
        return checkpoint.state.step


def test_stop_keeps_a_checkpoint_of_its_step_and_the_same_command_ends_with_the_same_weights(digits: Config) -> None:
    undisturbed = changed(digits, run={"name": "undisturbed"})
    fit(undisturbed)
    worker = ToldWorker(run_url_of(digits), told=Orders.STOP, after=7)
    reached = train(digits, worker, identity_of(digits))
    assert reached == {"step": 7.0, "images_seen": 7.0 * 32}
    assert saved_step(digits) == 7
    assert status_of(digits) == "KILLED"
    assert fit(digits)["step"] == 12
    assert_same(final_weights(digits), final_weights(undisturbed))
    assert status_of(digits) == "FINISHED"


def status_of(config: Config) -> str:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{config.run.name}'")
    return str(run.info.status)


def test_a_node_that_is_taken_away_costs_no_step(digits: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "SECONDS_BETWEEN_LOOKS", 0.0)
    with pytest.raises(PreemptedError, match="the checkpoint of step 5 is kept"):
        train(digits, ToldWorker(run_url_of(digits), preempted=True, after=5), identity_of(digits))
    assert saved_step(digits) == 5
    assert status_of(digits) == "RUNNING"


def test_hold_keeps_a_checkpoint_first(digits: Config) -> None:
    with pytest.raises(HeldError):
        train(digits, ToldWorker(run_url_of(digits), told=Orders.HOLD, after=3), identity_of(digits))
    assert saved_step(digits) == 3


def test_minutes_make_a_checkpoint_due(digits: Config) -> None:
    config = changed(digits, run={"checkpoint_interval": 12, "checkpoint_minutes": 1e-9, "keep_checkpoints": 100})
    fit(config)
    assert len(steps_below(run_url_of(config))) > 3
    config = changed(config, run={"checkpoint_minutes": 1e9, "name": "patient"})
    fit(config)
    assert steps_below(run_url_of(config)) == ["step-000000012"]


def test_stop_after_the_last_step_is_the_end(digits: Config) -> None:
    reached = train(digits, ToldWorker(run_url_of(digits), told=Orders.STOP, after=12), identity_of(digits))
    assert reached["step"] == 12
    assert "val/bits_per_dim" in reached
    assert status_of(digits) == "FINISHED"
