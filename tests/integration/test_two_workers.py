"""Two Ray Train workers, data and checkpoints on a real S3 server, and what kills do to them."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import load

from pipeline import storage
from tests.conftest import wait_until
from tests.host import Job

TINY = {
    "model.num-layers": 2, "model.num-filters": 8, "model.kernel-size": 3, "model.head-filters": 16,
    "model.dropout": 0.1, "data.records-per-shard": 150, "data.shuffle-shards": 3, "train.batch-size": 32,
    "train.warmup-steps": 2, "run.log-interval": 5, "run.eval-interval": 100, "run.sample-interval": 100,
}  # fmt: skip


def words_for(root: str, name: str, steps: int, checkpoint_interval: int) -> list[str]:
    overrides = TINY | {
        "data.url": f"{root}/data", "run.url": f"{root}/runs", "run.name": name, "train.steps": steps,
        "run.checkpoint-interval": checkpoint_interval,
    }  # fmt: skip
    return [word for key, value in overrides.items() for word in (f"--{key}", str(value))]


def final_weights(root: str, name: str, steps: int) -> dict[str, torch.Tensor]:
    folder = f"{root}/runs/{name}/step-{steps:09d}"
    return {
        f"{file}:{key}": tensor
        for file in ("weights", "averaged")
        for key, tensor in load(storage.read(f"{folder}/{file}.safetensors")).items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_killed_worker_and_killed_driver_end_with_the_undisturbed_weights(
    s3: str, start_job: Callable[..., Job], run_job: Callable[..., tuple[int, str]]
) -> None:
    steps = 240
    words = words_for(s3, "undisturbed", steps, 50)
    assert run_job("jobs.prepare", "digits", *words)[0] == 0
    status, told = run_job("jobs.train", "digits", *words)
    assert status == 0, told
    assert f"step {steps}/{steps}" in told
    undisturbed = final_weights(s3, "undisturbed", steps)
    assert storage.names_below(f"{s3}/runs/undisturbed/step-{steps:09d}")

    words = words_for(s3, "killed", steps, 50)
    victim = start_job("jobs.train", "digits", *words)
    victim.wait_for("step 75/")
    assert {process.cmdline()[0].split(".")[0].strip() for process in victim.processes("ray::")} == {
        "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_Letters", "ray::TrainController",
        "ray::SynchronizationActor", "ray::RayTrainWorker",
    }  # fmt: skip
    victim.workers()[-1].kill()
    victim.wait_for("going on from")
    assert re.search(r"worker \d was lost", victim.told)
    victim.wait_for("step 165/")
    victim.process.kill()
    victim.process.wait()
    status, told = run_job("jobs.train", "digits", *words)
    assert status == 0, told
    assert "going on from" in told
    assert_same(final_weights(s3, "killed", steps), undisturbed)
    _require_one_run_without_doubles("killed", steps)
    _require_the_same_evaluation_by_one_and_two(s3, steps, run_job)
    _require_the_same_images_after_a_kill(s3, steps, start_job, run_job)


def _require_one_run_without_doubles(name: str, steps: int) -> None:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("pixelcnn-ray")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/bits_per_dim")
    assert [metric.step for metric in history] == list(range(5, steps + 1, 5))


def _require_the_same_evaluation_by_one_and_two(root: str, steps: int, run_job: Callable[..., tuple[int, str]]) -> None:
    sums, reports = [], []
    for workers in ("0", "2"):
        words = [*words_for(root, "killed", steps, 50), "--cluster.num-workers", workers, "--evaluate.batch-size", "10"]
        status, told = run_job("jobs.evaluate", "digits", *words)
        assert status == 0, told
        assert "over 179 images of digits-8-none" in told
        sums.append(float(re.search(r"sum_of_nats ([\d.]+)", told).group(1)))  # type: ignore[union-attr]
        folder = re.search(r"^report: (.*)", told, re.MULTILINE).group(1)  # type: ignore[union-attr]
        reports.append(json.loads(storage.read(f"{folder}/report.json")))
    assert sums[0] == pytest.approx(sums[1], abs=1e-6)
    assert [report["workers"] for report in reports] == [1, 2]
    one, two = (_parts_of(report) for report in reports)
    assert len(one) == 2 * 10 + 1 + 64 + 2
    assert one == pytest.approx(two, rel=1e-9)


def _parts_of(report: dict[str, Any]) -> list[float]:
    """The numbers of a report that every worker's share adds to."""
    of_classes = [row[key] for row in report["classes"] for key in ("images", "nats")]
    of_colours = [row["nats"] for row in report["colours"]]
    of_positions = [bits for row in report["position_bits_per_dim"] for bits in row]
    ends = [report["metrics"][f"evaluate_val/bits_per_dim_ci95_{end}"] for end in ("low", "high")]
    return [*of_classes, *of_colours, *of_positions, *ends]


def _require_the_same_images_after_a_kill(
    root: str, steps: int, start_job: Callable[..., Job], run_job: Callable[..., tuple[int, str]]
) -> None:
    """Two workers killed in the middle and one process that goes on give what one process gives."""
    words = [*words_for(root, "killed", steps, 50), "--sample.count", "600", "--sample.batch-size", "10"]
    one, two = f"{root}/one", f"{root}/two"
    status, told = run_job("jobs.sample", "digits", *words, "--cluster.num-workers", "0", "--sample.url", one)
    assert status == 0, told
    assert "drew 600 images" in told
    killed = start_job("jobs.sample", "digits", *words, "--sample.url", two)
    parts = f"{two}/parts"
    wait_until(lambda: killed.process.poll() is None and len(storage.names_below(parts)) >= 4, 120, "four parts")
    # All of them, as workers outlive their driver by seconds, enough for 600 images.
    for process in [*killed.processes(), killed.process]:
        process.kill()
    killed.process.wait()
    assert 4 <= len(storage.names_below(parts)) < 60
    assert not storage.exists(f"{two}/manifest.json")
    status, told = run_job("jobs.sample", "digits", *words, "--cluster.num-workers", "0", "--sample.url", two)
    assert status == 0, told
    assert storage.names_below(one) == storage.names_below(two)
    assert len(storage.names_below(f"{one}/images")) == 600
    for name in ("samples.npz", "samples.png", "manifest.json", "images/000599.png"):
        assert storage.read(f"{one}/{name}") == storage.read(f"{two}/{name}")


@pytest.mark.timeout(300)
def test_errors_of_workers_are_one_line_and_end_the_run_as_failed(
    s3: str, tmp_path: Path, run_job: Callable[..., tuple[int, str]]
) -> None:
    """Of an environment in a path with a space, which Ray's own shell would not start workers in."""
    (tmp_path / "my folder").symlink_to(sys.prefix)
    client = mlflow.MlflowClient()  # makes the sqlite tables, which a worker that ends here must not leave half made
    words = words_for(s3, "failing", 40, 20)
    assert run_job("jobs.prepare", "digits", *words)[0] == 0
    shard = f"{s3}/data/train/shard-000003.tar"
    content = storage.read(shard)
    storage.write(shard, content[:-1024])
    status, told = run_job("jobs.train", "digits", *words, program=str(tmp_path / "my folder/bin/python"))
    assert status == 1
    assert told.splitlines()[-1].startswith(f"error: {shard}: truncated or altered, {len(content) - 1024} bytes where")
    assert "Traceback" not in told
    assert not (tmp_path / "home/.ray/auth_token").exists(), (
        "it would lock later clusters of this machine's `ray start`"
    )
    experiment = client.get_experiment_by_name("pixelcnn-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert "truncated or altered" in run.data.tags["error"]


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["jobs.train", "cifar10-small", "--data.url", "{s3}/none"], {}, "manifest.json: no manifest; run `python -m"),
        (["jobs.train", "cifar10-small", "--data.url", "s3://nowhere/d"], {}, "the bucket 'nowhere' does not exist"),
        (
            ["jobs.train", "cifar10-small", "--data.url", "{s3}/d"],
            {"AWS_SECRET_ACCESS_KEY": "no"},
            "refused the credentials",
        ),
        (["jobs.evaluate", "digits", "--data.url", "{s3}/data", "--run.url", "{s3}/no"], {}, "no manifest"),
        (["jobs.sample", "digist"], {}, "unknown preset 'digist': did you mean digits?"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    s3: str, run_job: Callable[..., tuple[int, str]], words: list[str], environment: dict[str, str], message: str
) -> None:
    status, told = run_job(*(word.format(s3=s3) for word in words), **environment)
    assert status == 1
    assert told.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in told
    assert message in told.splitlines()[-1]
