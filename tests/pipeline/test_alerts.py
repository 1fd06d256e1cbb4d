"""Alerts of a run: when they are told, once, and how they reach MLflow."""

import time
from pathlib import Path

import mlflow
import pytest

from pipeline import alerts
from pipeline.alerts import Alerts, StallWatch
from pipeline.config import Config
from pipeline.train import RankZeroTracker
from tests.conftest import tiny_config, wait_until
from tests.pipeline.test_train import changed, fit, identity_of

GOOD = {"train/bits_per_dim": 3.0, "train/data_wait_fraction": 0.01}
STARVING = GOOD | {"train/data_wait_fraction": 0.4}


class Told(list[tuple[str, str]]):
    def __call__(self, kind: str, what: str) -> None:
        self.append((kind, what))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """17 levels: drawn at random they take 4.09 bits/dim; two steps of warm-up."""
    return tiny_config(tmp_path)


def test_divergence_is_told_once_until_it_has_passed(config: Config) -> None:
    told = Told()
    watch = Alerts(config, told)
    bad = GOOD | {"train/bits_per_dim": 4.2}
    watch.look(2, bad)
    assert told == []
    for step in (4, 6, 8):
        watch.look(step, bad)
    ((kind, what),) = told
    assert kind == "diverging"
    assert what.startswith(
        "step 4: 4.20 bits/dim is worse than the 4.08746 of levels drawn at random; stop the run and "
    )
    assert "train.learning_rate (0.003)" in what
    watch.look(10, GOOD)
    watch.look(12, bad)
    assert told.kinds() == ["diverging", "diverging"]


def test_noise_is_told_where_drawn_images_cost_far_more_than_held_out_ones_at_a_low_rate(config: Config) -> None:
    told = Told()
    watch = Alerts(config, told)
    noise = {"drawn/bits_per_dim": 5.21, "val/bits_per_dim": 3.7}
    watch.drawn(8, noise)
    watch.drawn(11, {"drawn/bits_per_dim": 3.1, "val/bits_per_dim": 3.0})
    assert told == []
    for step in (11, 12):
        watch.drawn(step, noise)
    ((kind, what),) = told
    assert kind == "noise"
    assert what.startswith("step 11: the images that it draws cost 5.21 bits/dim, those of val 3.70: it wanders off")
    assert "train.weight_decay (0.0)" in what


def test_starving_takes_three_lines_in_a_row(config: Config) -> None:
    told = Told()
    watch = Alerts(config, told)
    for step, metrics in enumerate([STARVING, STARVING, GOOD, STARVING, STARVING]):
        watch.look(step, metrics)
    assert told == []
    watch.look(6, STARVING)
    watch.look(8, STARVING)
    ((kind, what),) = told
    assert kind == "starving"
    assert what.startswith("step 6: workers wait for data 40% of the time; set data.cache_folder, raise ")


def test_a_model_of_another_measure_has_no_bits_to_diverge(config: Config) -> None:
    told = Told()
    Alerts(config, told).look(100, {"train/mean_squared_error": 99.0, "train/data_wait_fraction": 0.0})
    assert told == []


def test_a_step_that_hangs_is_told_once_and_only_steps_count(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "SHORTEST_STALL_SECONDS", 0.1)
    monkeypatch.setattr(alerts, "LOOK_SECONDS", 0.01)
    told = Told()
    with StallWatch(config, told).watching() as watch:
        watch.begin(1)
        time.sleep(0.2)  # the first step may compile
        watch.end()
        assert told == []
    watch = StallWatch(config, told)
    watch.begin(1)
    watch.end()
    with watch.watching():
        time.sleep(0.2)  # an evaluation
        assert told == []
        watch.begin(2)
        wait_until(lambda: bool(told), 10, "the alert")
        time.sleep(0.2)
    ((kind, what),) = told
    assert kind == "stalled"
    assert what.startswith("step 2 has taken 0 s so far, the longest 0.0 s; a worker, its machine or storage ")
    assert "cluster.stall_seconds (" in what


def test_an_alert_is_a_line_and_a_tag_of_the_run(digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = changed(digits, run={"name": "alerted"})
    tracker = RankZeroTracker(config, identity_of(config), [])
    tracker.alerts.look(4, GOOD | {"train/bits_per_dim": 4.2})
    tracker.close(None)
    assert "alert: diverging: step 4: 4.20 bits/dim is worse" in capsys.readouterr().out
    assert run_named("alerted", config).data.tags["alert.diverging"].startswith("step 4: 4.20 bits/dim is worse")


def test_what_drawn_images_cost_stands_beside_the_measure(digits: Config) -> None:
    config = changed(digits, run={"name": "drawn"})
    fit(config)
    metrics = run_named("drawn", config).data.metrics
    assert metrics["drawn/images"] == 20
    assert metrics["drawn/bits_per_dim"] == pytest.approx(metrics["val/bits_per_dim"], rel=0.1)


def run_named(name: str, config: Config) -> mlflow.entities.Run:
    identity = identity_of(config)
    client = mlflow.MlflowClient(identity.tracking_uri)
    experiment = client.get_experiment_by_name(identity.experiment)
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run
