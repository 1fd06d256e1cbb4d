"""Runs become versions: what is on them, which alias they get, and that they load where this repository is not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from jobs.train import job as train_job
from pipeline import registration
from pipeline.command_line import run_job
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.registration import Figures, compared_on, judge, register, told
from pipeline.registry import Version
from pipeline.run_identity import default_tracking_uri
from pipeline.submitted_job import JOB_VARIABLE
from pipeline.tracking import Tracker
from tests.conftest import tiny_config
from tests.pipeline.test_model_kinds import of_kind
from tests.pipeline.test_train import changed, fit, identity_of

FIGURES = Figures(
    bits_per_dim=2.0, nats=88.7, images=179, step=12, data_version="digits-8-none", split="val", split_digest="ab",
    given="labels",
)  # fmt: skip

LOADED_ALONE = """
import sys

sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import importlib.util, json, os
assert importlib.util.find_spec("models") is None and importlib.util.find_spec("pipeline") is None
import mlflow, pandas as pd

model = mlflow.pyfunc.load_model("models:/digits@champion")
drawn = model.predict(pd.DataFrame({"label": [3, 4]}), params={"format": "array", "seed": 7})
scores = model.predict(drawn[["array"]].assign(label=[3, 4]), params={"task": "score"})
ours = [name for name in sys.modules if name.startswith("pixelcnn_ray_")]
assert not {"models", "pipeline"} & {name.split(".")[0] for name in sys.modules}
assert all(f"{os.sep}code{os.sep}pixelcnn_ray_" in sys.modules[name].__file__ for name in ours)
print(json.dumps({"modules": len(ours), "drawn": drawn["nats"].tolist(), "scored": scores["nats"].tolist()}))
"""


def loaded_alone(folder: Path) -> dict[str, Any]:
    """What a process says that loads the champion in an empty folder, with no way to this repository."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", LOADED_ALONE], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def trained(digits: Config) -> Config:
    """A run of a few steps whose jobs run in this process."""
    config = changed(digits, cluster={"num_workers": 0}, run={"sample_interval": 100})
    fit(config)
    return config


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own, of its own types
def test_a_run_becomes_a_version_with_its_figures_that_loads_alone(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = register(trained)
    assert (first.name, first.version, first.alias) == ("digits", "1", "champion")
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("digits", "champion")
    manifest = load_manifest(trained, "val")
    assert Figures.model_validate(version.tags) == first.figures
    assert (first.figures.images, first.figures.step) == (179, 12)
    assert (first.figures.data_version, first.figures.split_digest) == ("digits-8-none", manifest.digest)
    assert f"{first.figures.bits_per_dim:.4f} bits/dim" in version.description
    run = client.get_run(version.run_id)
    assert run.info.run_name == "tiny"
    assert run.data.metrics["evaluate_val/bits_per_dim"] == first.figures.bits_per_dim
    assert [f"models:/{output.model_id}" for output in run.outputs.model_outputs] == [version.source]

    alone = loaded_alone(tmp_path / "elsewhere")
    assert alone["modules"] > 15
    assert alone["scored"] == pytest.approx(alone["drawn"], rel=1e-5)

    # Its evaluation is there, and the same weights are one version, whatever names the run.
    monkeypatch.setattr(registration, "run_evaluation", lambda config: pytest.fail("evaluated twice"))
    for name in ("tiny", version.run_id):
        assert run_job("jobs.register", "Test.", lambda config: print(register(config)), [name], config_of_run) == 0
        assert "version='1', alias='champion', reason='it was before'" in capsys.readouterr().out
    assert len(client.search_model_versions("name = 'digits'")) == 1

    # Another champion, of other images or better, decides anew; the one with no figures is left alone.
    better = FIGURES.model_copy(update={"bits_per_dim": 0.1, "split_digest": manifest.digest})
    other = client.create_model_version("digits", version.source, tags=better.tags())
    client.set_registered_model_alias("digits", "champion", other.version)
    assert register(trained).alias == "challenger"
    aliases = client.get_registered_model("digits").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"champion": "2", "challenger": "1"}
    client.set_model_version_tag("digits", "2", "bits_per_dim", "99.0")
    assert register(trained).alias == "champion"
    assert {alias: str(n) for alias, n in client.get_registered_model("digits").aliases.items()} == {"champion": "1"}
    assert "version 2, the champion, has 99.000000 bits/dim" in client.get_model_version("digits", "1").description


def config_of_run(run: str) -> Config:
    return registration.config_of_run(run)


@pytest.mark.parametrize(
    ("changes", "alias", "reason"),
    [
        ({"bits_per_dim": 2.1}, "champion", "has 2.100000 bits/dim on the same images, this one 2.000000"),
        ({"bits_per_dim": 2.0}, "challenger", "has 2.000000 bits/dim on the same images, this one 2.000000"),
        ({"bits_per_dim": 1.9}, "challenger", "has 1.900000 bits/dim on the same images, this one 2.000000"),
        ({"bits_per_dim": 2.1, "data_version": "digits-8-box"}, "challenger", "data_version digits-8-box, this one"),
        ({"bits_per_dim": 2.1, "split": "test"}, "challenger", "split test, this one with val: not comparable"),
        ({"bits_per_dim": 2.1, "split_digest": "cd"}, "challenger", "split_digest cd, this one with ab: not"),
        ({"bits_per_dim": 2.1, "given": "nothing"}, "challenger", "given nothing, this one with labels: not"),
    ],
)
def test_the_champion_gives_way_only_to_fewer_bits_on_the_same_images(
    changes: dict[str, Any], alias: str, reason: str
) -> None:
    decided, why = judge(FIGURES, Version("3", FIGURES.model_copy(update=changes).tags()))
    assert decided == alias
    assert reason in why
    assert why.startswith("version 3, the champion, ")


def test_without_a_champion_and_beside_one_without_figures() -> None:
    assert judge(FIGURES, None)[0] == "champion"
    assert judge(FIGURES, Version("3", {"bits_per_dim": "3.0"})) == (
        "challenger",
        "version 3, the champion, has no figures to compare with; move the alias by hand",
    )


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own, of its own types
def test_a_submitted_job_registers_in_the_file_that_its_runs_are_in(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That lies in ~/pixelcnn-ray, where MLflow looks for none by itself."""
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "home/pixelcnn-ray").mkdir(parents=True)
    config = changed(digits, cluster={"num_workers": 0}, run={"sample_interval": 100})
    fit(config)
    registered = register(config)
    uri = f"sqlite:///{tmp_path}/home/pixelcnn-ray/mlflow.db"
    assert f"serve it by `MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/digits@" in told(registered)
    client = mlflow.MlflowClient(uri)
    assert client.get_model_version_by_alias("digits", registered.alias).version == 1
    assert not list(folder.iterdir())
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_runs_that_can_not_be_named_are_told(digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(run: str) -> str:
        assert run_job("jobs.register", "Test.", register_nothing, [run], config_of_run) == 1
        return capsys.readouterr().err.splitlines()[-1]

    file = Path(default_tracking_uri().removeprefix("sqlite:///"))
    file.unlink()
    assert refused("tiny") == (
        f"error: RUN 'tiny': no preset, and no run either, as MLflow's file {file} isn't there; start where it was "
        "started, or set MLFLOW_TRACKING_URI"
    )
    assert not file.exists()
    for key in ("a", "b"):
        identity = replace(identity_of(digits), key=key)
        Tracker(identity).close("FINISHED")
    assert refused("tiny").startswith("error: RUN 'tiny': ")
    assert refused("tiny").endswith(" have this name; give the id of one")
    assert "RUN 'absent': no preset, and no run of this id or name in MLflow at sqlite:///" in refused("absent")
    client = mlflow.MlflowClient()
    other = client.create_run(client.create_experiment("other"), run_name="foreign")
    assert f"the run {other.info.run_id} has no tag run_url" in refused("foreign")
    with pytest.raises(UserError, match=r"no checkpoint; train the run first"):
        register(digits)
    assert default_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"]


def register_nothing(config: Config) -> None:
    pytest.fail("no run was to be found")


@pytest.mark.parametrize(("kind", "measure"), [("mse-autoencoder", "squared_error"), ("portrait-embedding", "triplet")])
def test_what_has_no_likelihood_is_refused_by_its_kind(kind: str, measure: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model.kind {kind}: measured by {measure}.*register a run of another kind"):
        compared_on(of_kind(tiny_config(tmp_path), kind))


def test_a_split_that_is_not_there_is_refused_before_the_training_that_would_be_registered(digits: Config) -> None:
    asked = changed(digits, tracking={"register_as": "figures"}, evaluate={"split": "test"}, cluster={"num_workers": 0})
    with pytest.raises(UserError, match=r"/test/manifest.json: no manifest"):
        train_job(asked)
    assert not Path(digits.run.url).exists()


@pytest.mark.parametrize("name", ["a/b", "a:b", "it's", " ", "-"])
@pytest.mark.parametrize("key", ["data.name", "tracking.register_as"])
def test_names_that_mlflow_refuses_are_refused_at_once(key: str, name: str, tmp_path: Path) -> None:
    section, field = key.split(".")
    with pytest.raises(UserError, match=rf"{key} {name!r}: String should match pattern"):
        tiny_config(tmp_path, **{section: {field: name}})
