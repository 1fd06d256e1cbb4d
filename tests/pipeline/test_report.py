import io
import json
import math
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from PIL import Image

from pipeline.breakdown import Breakdown
from pipeline.config import Config
from pipeline.evaluate import Measured, evaluate
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare
from pipeline.presets import PRESETS
from pipeline.report import JSON_NAME, MARKDOWN_NAME, PICTURE_NAME, Report
from pipeline.runs import run_evaluation
from pipeline.storage import names_below
from tests.conftest import LocalWorker, tiny_config
from tests.pipeline.test_breakdown import manifest_of
from tests.pipeline.test_model_kinds import of_kind
from tests.pipeline.test_train import changed, fit


def report_of(classes: int = 3, bits: float = 4.0, **manifest: object) -> Report:
    """One image a class, of `bits` and so many hundredths more as its label, on CIFAR-10's configuration."""
    split = manifest_of(tuple(f"class|{label}" for label in range(classes)), **manifest)
    parts = Breakdown.empty(split, torch.device("cpu"))
    labels = torch.arange(classes)
    nats = (bits + labels / 100).double() * math.log(2)
    parts.add(nats[:, None, None, None].expand(classes, *split.shape), labels)
    measured = Measured("nats", parts.nats_by_class.sum().item(), classes, parts.dims)
    return Report(PRESETS["cifar10"].config, split, 1200, measured, parts, seconds=2.0, workers=2)


def test_evaluation_writes_its_report_and_puts_it_on_the_run(digits: Config) -> None:
    config = digits.model_copy(update={"cluster": digits.cluster.model_copy(update={"num_workers": 0})})
    fit(config)
    told = run_evaluation(config)
    assert list(told) == [
        "step", "data_version", "report", "bits_per_dim", "nats", "images", "sum_of_nats", "images_per_second",
        "bits_per_dim_grey", "bits_per_dim_ci95_low", "bits_per_dim_ci95_high",
    ]  # fmt: skip
    assert told["report"].endswith("/runs/tiny/evaluation/step-000000012-val")
    assert names_below(told["report"]) == sorted([PICTURE_NAME, MARKDOWN_NAME, JSON_NAME])
    written = json.loads(Path(told["report"], JSON_NAME).read_text())
    total = told["sum_of_nats"]
    assert sum(part["nats"] for part in written["classes"]) == pytest.approx(total, rel=1e-9)
    assert sum(part["nats"] for part in written["colours"]) == pytest.approx(total, rel=1e-9)
    positions = [bits for row in written["position_bits_per_dim"] for bits in row]
    assert math.fsum(positions) * math.log(2) * 179 == pytest.approx(total, rel=1e-9)
    assert sum(part["images"] for part in written["classes"]) == written["images"] == 179
    assert written["given"] == "class"
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("pixelcnn-ray").experiment_id])
    assert run.data.metrics["evaluate_val/bits_per_dim"] == told["bits_per_dim"] == told["bits_per_dim_grey"]
    assert run.data.metrics["evaluate_val/bits_per_dim_ci95_low"] < told["bits_per_dim"]
    there = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "evaluation/step-000000012-val")]
    assert sorted(path.rsplit("/", 1)[1] for path in there) == names_below(told["report"])


def test_the_split_that_training_evaluates_is_evaluated_unless_another_is_named(tmp_path: Path) -> None:
    """As cifar10's, whose val_split is test."""
    config = tiny_config(tmp_path, data={"val_split": "test"}, cluster={"num_workers": 0}, run={"sample_interval": 100})
    prepare(config)
    fit(config)
    assert run_evaluation(config)["report"].endswith("/runs/tiny/evaluation/step-000000012-test")
    assert run_evaluation(changed(config, evaluate={"split": "train"}))["images"] == 1797 - 179


def test_a_model_without_a_likelihood_reports_its_measure_alone(digits: Config) -> None:
    config = of_kind(digits, "mse-autoencoder")
    model, manifest = config.build_model(), load_manifest(config, "val")
    measured = evaluate(config, manifest, model, LocalWorker(""), 50)
    report = Report(config, manifest, 3, measured, None, seconds=1.0, workers=1)
    assert set(report.files()) == {MARKDOWN_NAME, JSON_NAME}
    assert "mean squared error" in report.to_markdown()
    assert "By colour" not in report.to_markdown()
    assert set(report.metrics()) == {
        "evaluate_val/mean_squared_error", "evaluate_val/images", "evaluate_val/sum_of_squared_error",
        "evaluate_val/images_per_second",
    }  # fmt: skip


def test_every_class_is_told_in_order_of_bits_or_the_ends_of_many() -> None:
    few, many = report_of(3).to_markdown(), report_of(1000).to_markdown()
    assert few.index("class\\|0") < few.index("class\\|1") < few.index("class\\|2")
    assert sum(line.startswith("| class\\|") for line in many.splitlines()) == 10
    assert "| class\\|999 |" in many
    assert "of 1,000; all stand in report.json" in many
    assert len(json.loads(report_of(1000).to_json())["classes"]) == 1000


def test_comparable_figures_stand_beside_ours_with_what_is_missing() -> None:
    told = report_of(3, 4.0, name="cifar10", version="cifar10-32-none", shape=(3, 32, 32)).to_markdown()
    assert "| Gated PixelCNN            | 3.03 bits/dim    | +0.98          | arXiv 1606.05328, Table 1 |" in told
    assert "| DRAW                      | <= 4.13 bits/dim | -0.12          |" in told
    assert "- ours is over 0 of the 10,000 images of CIFAR-10's test split" in told


def test_figures_of_another_version_are_refused_and_not_told() -> None:
    report = report_of(3, 4.0, name="imagenet32", version="imagenet32-box", shape=(3, 32, 32))
    told = " ".join(report.to_markdown().split())
    assert "not compared: ImageNet 32x32 of arXiv 1601.06759, Table 6 and arXiv 1606.05328, Table 2: " in told
    assert "3.83" not in told


def test_without_labels_the_name_says_so(digits: Config) -> None:
    config = of_kind(digits, "gated-pixelcnn", condition_dropout=0.5)
    report = replace(report_of(), config=config)
    assert report.given == "class"
    tree = config.model_dump()
    tree["evaluate"]["conditional"] = False
    bare = replace(report, config=Config.model_validate(tree))
    assert bare.given == "nothing"
    assert "evaluate_test_unconditional/bits_per_dim" in bare.metrics()


def test_auto_encoders_say_what_they_are_given(digits: Config) -> None:
    report = replace(report_of(), config=of_kind(digits, "pixelcnn-autoencoder"))
    assert report.given == "image"
    assert "numbers that a network made of the image itself" in report.to_markdown()


def test_picture_is_a_png() -> None:
    picture = Image.open(io.BytesIO(report_of().files()[PICTURE_NAME]))
    assert picture.format == "PNG"
    assert picture.size == (720, 600)
