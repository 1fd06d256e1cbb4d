"""The runs on three hosts that benchmarks/faults.py strikes: their command, and how one is held against another."""

from dataclasses import dataclass
from pathlib import Path

import mlflow
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.counted_training import images_by_step, missing_and_double, require_whole_epochs
from pipeline.manifest import Manifest
from tests.hosts import Hosts

BATCH = 64


@dataclass(frozen=True)
class Comparison:
    """A run against the one that was left alone, which had every image and every metric step once."""

    weights_difference: float
    """Largest of a final weight."""
    loss_difference: float
    """Largest of a training loss, bits/dim."""
    missing_images: int
    double_images: int
    missing_metrics: int
    double_metrics: int


def words_for(name: str, min_workers: int, run_url: str, steps: int, log_interval: int, interval: int) -> list[str]:
    """The command of a run whose images are counted: three workers, a batch that three don't divide."""
    values = {
        "model.num-layers": 4, "model.num-filters": 24, "model.kernel-size": 5, "model.head-filters": 32,
        "model.dropout": 0.1, "data.url": "s3://bucket/data", "run.url": run_url, "run.name": name,
        "train.steps": steps, "train.batch-size": BATCH, "train.warmup-steps": 20, "run.log-interval": log_interval,
        "run.eval-interval": steps, "run.sample-interval": 10 * steps, "run.checkpoint-interval": interval,
        "cluster.num-workers": 3, "cluster.min-workers": min_workers, "cluster.hang-seconds": 15,
        "tracking.patience-seconds": 180,
    }  # fmt: skip
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return ["benchmarks.counted_training", "digits", *words]


def weights_of(hosts: Hosts, url: str, name: str, steps: int) -> dict[str, Tensor]:
    """Final weights of a run."""
    root = hosts.folder / "s3" / url.removeprefix("s3://") if url.startswith("s3://") else Path(url)
    return load_file(root / name / f"step-{steps:09d}" / "weights.safetensors")


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of any weight; 0.0 only if all bits are equal."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def losses_of(hosts: Hosts, name: str) -> list[tuple[int, float]]:
    """Steps and training losses, in bits/dim, that MLflow has of the one run of a name."""
    client = mlflow.MlflowClient(hosts.mlflow_uri)
    experiment = client.get_experiment_by_name("pixelcnn-ray")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    history = client.get_metric_history(run.info.run_id, "train/bits_per_dim")
    return [(metric.step, metric.value) for metric in history]


def images_of(hosts: Hosts, name: str) -> dict[int, list[str]]:
    """Keys of the images of each step that a run's final weights were made by."""
    return images_by_step(hosts.folder / "images" / name)


def require_whole_run(hosts: Hosts, steps: int) -> None:
    """Assert that the run that was left alone had every image once an epoch, so that others can be held against it."""
    manifest = (hosts.folder / "s3" / "bucket" / "data" / "train" / "manifest.json").read_text()
    found = images_of(hosts, "undisturbed")
    assert len(found) == steps
    require_whole_epochs(found, Manifest.model_validate_json(manifest).num_images)


def against(hosts: Hosts, run_url: str, name: str, other: str, steps: int) -> Comparison:
    """How a run below run_url differs from another one, which lies below s3://bucket/runs."""
    losses, expected = losses_of(hosts, name), dict(losses_of(hosts, other))
    told = [step for step, _ in losses]
    missing, double = missing_and_double(images_of(hosts, name), images_of(hosts, other))
    weights, others = weights_of(hosts, run_url, name, steps), weights_of(hosts, "s3://bucket/runs", other, steps)
    return Comparison(
        weights_difference=difference(weights, others),
        loss_difference=max(abs(value - expected[step]) for step, value in losses),
        missing_images=missing, double_images=double,
        missing_metrics=len(set(expected) - set(told)), double_metrics=len(told) - len(set(told)),
    )  # fmt: skip
