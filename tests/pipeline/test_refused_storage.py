"""Credentials revoked while a run trains: an error that names the last checkpoint, and a run that has failed."""

import mlflow
import pytest
from torch import Tensor

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.learner import Learner, run_url_of
from pipeline.prepare import prepare
from pipeline.runs import run_training
from pipeline.stream import Batch
from tests.conftest import tiny_config


@pytest.fixture
def on_s3(s3: str) -> Config:
    config = tiny_config(s3, cluster={"num_workers": 0})
    prepare(config)
    return config


@pytest.mark.parametrize("meets_it", ["upload", "read"])
def test_the_last_sound_checkpoint_is_named_and_the_run_has_failed(
    meets_it: str, on_s3: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage can't be asked any more, whether the uploader meets it or what reads the data."""
    real = Learner.advance

    def revoked(learner: Learner, batch: Batch) -> tuple[Tensor, int]:
        if learner.step == 6:
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
            storage._client.cache_clear()
            if meets_it == "read":
                storage.read(f"{on_s3.data.url}/train/manifest.json")
        return real(learner, batch)

    monkeypatch.setattr(Learner, "advance", revoked)
    with pytest.raises(UserError, match=rf"refused the credentials .*is {run_url_of(on_s3)}/step-000000004$") as raised:
        run_training(on_s3)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("pixelcnn-ray").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == str(raised.value)
