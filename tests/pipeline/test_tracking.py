import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from PIL import Image

from pipeline.config import Config
from pipeline.learner import run_url_of
from pipeline.manifest import load_manifest
from pipeline.mlflow_run import SystemMetrics
from pipeline.run_identity import RunIdentity, identify
from pipeline.tracking import Tracker
from tests.conftest import wait_until
from tests.mlflow_server import Server


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def identity(digits: Config) -> RunIdentity:
    return identify(digits, load_manifest(digits, "train"), run_url_of(digits), "abc123")


def runs_of(identity: RunIdentity) -> list[Run]:
    client = mlflow.MlflowClient(identity.tracking_uri)
    experiment = client.get_experiment_by_name(identity.experiment)
    return client.search_runs([experiment.experiment_id])


def history(identity: RunIdentity, key: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(identity.tracking_uri)
    (run,) = runs_of(identity)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def test_run_has_params_config_commit_data_set_metrics_images_and_end(digits: Config, identity: RunIdentity) -> None:
    tracker = Tracker(identity)
    tracker.metrics(10, {"train/bits_per_dim": 3.5})
    tracker.image(10, "samples", png())
    tracker.tags({"checkpoint": "s3://bucket/step-10"})
    tracker.close("FINISHED")
    (run,) = runs_of(identity)
    client = mlflow.MlflowClient(identity.tracking_uri)
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.data.params["model.num_layers"] == "2"
    assert run.data.tags["git_commit"] == "abc123"
    assert run.data.tags["data_version"] == "digits-8-none"
    assert run.data.tags["checkpoint"] == "s3://bucket/step-10"
    (dataset,) = run.inputs.dataset_inputs
    manifest = load_manifest(digits, "train")
    assert dataset.dataset.name == "digits-8-none/train"
    assert manifest.digest.startswith(dataset.dataset.digest)
    assert json.loads(dataset.dataset.profile)["num_images"] == manifest.num_images
    logged = client.download_artifacts(run.info.run_id, "config.json")
    assert Config.model_validate_json(Path(logged).read_text()) == digits
    assert history(identity, "train/bits_per_dim") == [(10, 3.5)]
    images = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")]
    assert any(path.startswith("images/samples+step+10+") and path.endswith(".png") for path in images)


def test_restarts_go_on_in_the_same_run_and_repeat_nothing(identity: RunIdentity) -> None:
    first = Tracker(identity)
    for step in (10, 20, 30):
        first.metrics(step, {"train/bits_per_dim": 4.0 - step / 100})
    first.image(20, "samples", png())
    first.close(None)
    second = Tracker(replace(identity, params=identity.params | {"run.log_interval": "99"}))
    for step in (20, 30, 40):
        second.metrics(step, {"train/bits_per_dim": 4.0 - step / 100})
    second.image(20, "samples", png())
    second.close("FINISHED")
    assert [step for step, _ in history(identity, "train/bits_per_dim")] == [10, 20, 30, 40]
    (run,) = runs_of(identity)
    images = mlflow.MlflowClient(identity.tracking_uri).list_artifacts(run.info.run_id, "images")
    assert sum(artifact.path.endswith(".png") for artifact in images) == 1


def test_tags_are_those_of_the_training_that_started_last(identity: RunIdentity) -> None:
    def tracked(trains: bool, **tags: str) -> dict[str, str]:
        tracker = Tracker(replace(identity, tags=identity.tags | tags))
        if trains:
            tracker.running()
        tracker.close(None)
        found = runs_of(identity)[0].data.tags
        return {name: found.get(name, "") for name in ("cluster", "ray_job_id", "stopped_early")}

    first = {"cluster": "local", "ray_job_id": "none", "stopped_early": "false"}
    assert tracked(True, cluster="local", ray_job_id="none") == first
    assert tracked(False, cluster="evaluated", stopped_early="true") == first
    again = {"cluster": "pixelcnn", "ray_job_id": "raysubmit_1", "stopped_early": "false"}
    assert tracked(True, **again) == again


def test_metrics_go_together_and_a_step_counts_once(identity: RunIdentity) -> None:
    tracker = Tracker(identity)
    for step in range(1, 1101):
        tracker.metrics(step, {"train/bits_per_dim": 1.0 / step})
        if step % 500 == 0:
            tracker.metrics(step, {"train/bits_per_dim": 0.0, "val/bits_per_dim": 2.0})
    tracker.close(None)
    assert history(identity, "train/bits_per_dim") == [(step, 1.0 / step) for step in range(1, 1101)]
    assert history(identity, "val/bits_per_dim") == [(500, 2.0), (1000, 2.0)]


def test_an_image_that_broke_off_between_its_files_is_completed(identity: RunIdentity) -> None:
    tracker = Tracker(identity)
    tracker.image(20, "samples", png())
    tracker.close(None)
    folder = Path(identity.tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    (small,) = folder.rglob("*.webp")
    small.unlink()
    again = Tracker(identity)
    again.image(20, "samples", png())
    again.close(None)
    assert small.is_file()
    assert len(list(folder.rglob("images/*"))) == 2


def test_folder_removed_means_a_new_run(digits: Config, identity: RunIdentity) -> None:
    Tracker(identity).close("FINISHED")
    Path(run_url_of(digits), "run.json").unlink()
    Tracker(identify(digits, load_manifest(digits, "train"), run_url_of(digits), "abc123")).close("FINISHED")
    assert len(runs_of(identity)) == 2


def test_system_metrics_are_read_by_mlflows_monitors() -> None:
    system, values = SystemMetrics(), dict[str, float]()
    wait_until(lambda: bool(values.update(system.read()) or values), 60, "MLflow's monitors")
    assert "system/cpu_utilization_percentage" in values
    assert values["system/system_memory_usage_megabytes"] > 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    one.kill()


def test_what_a_dead_server_missed_is_delivered_when_it_returns(
    identity: RunIdentity, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = replace(identity, tracking_uri=server.uri)
    tracker = Tracker(identity)
    tracker.metrics(1, {"train/bits_per_dim": 3.0})
    server.start()
    wait_until(lambda: not tracker.undelivered(), 60, "delivery after the start")
    server.kill()
    tracker.metrics(2, {"train/bits_per_dim": 2.0})
    tracker.image(2, "samples", png())
    wait_until(lambda: capsys.readouterr().out.count("training goes on") > 0, 60, "the warning")
    assert [entry["step"] for entry in tracker.undelivered()] == [2, 2]
    server.start()
    tracker.metrics(3, {"train/bits_per_dim": 1.0})
    tracker.close("FINISHED")
    assert tracker.undelivered() == []
    assert history(identity, "train/bits_per_dim") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert runs_of(identity)[0].info.status == "FINISHED"


def test_what_a_server_never_took_is_kept_for_the_next_start(
    identity: RunIdentity, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = replace(identity, tracking_uri=server.uri, patience_seconds=1.0)
    tracker = Tracker(identity)
    tracker.metrics(1, {"train/bits_per_dim": 3.0})
    tracker.close("FINISHED")
    kept = Path(identity.run_url, "undelivered-tracking.json")
    assert [entry["kind"] for entry in json.loads(kept.read_text())] == ["metrics", "status"]
    assert f"2 entries are kept in {kept}" in capsys.readouterr().out
    server.start()
    Tracker(replace(identity, patience_seconds=60.0)).close("FINISHED")
    assert history(identity, "train/bits_per_dim") == [(1, 3.0)]
    assert not kept.exists()


def test_only_training_says_that_a_run_goes_on(identity: RunIdentity) -> None:
    def status() -> str:
        return str(runs_of(identity)[0].info.status)

    Tracker(identity).close("FINISHED")
    measuring = Tracker(identity)
    measuring.metrics(5, {"evaluate_val/bits_per_dim": 1.0})
    measuring.close(None)
    assert status() == "FINISHED"
    training = Tracker(identity)
    training.running()
    training.close(None)
    assert status() == "RUNNING"


def test_an_end_that_overtakes_the_start_stays(identity: RunIdentity) -> None:
    """A search ends a stopped trial's run while a worker that is about to die still has to tell of its start."""
    started = {"stopped_early": "false"}
    away = replace(identity, tracking_uri="http://127.0.0.1:9", patience_seconds=0.1, tags=identity.tags | started)
    worker, search = Tracker(away), Tracker(identity)
    worker.running()
    search.tags({"stopped_early": "true"})
    search.close("FINISHED")
    (ended,) = runs_of(identity)
    worker.close(None)
    Tracker(identity).close("FINISHED")  # tells first what the worker kept
    (run,) = runs_of(identity)
    assert run.data.tags["stopped_early"] == "true"
    assert (run.info.status, run.info.end_time) == ("FINISHED", ended.info.end_time)
