"""Fitted factors of the logits: they give training images the largest likelihood, whoever reads them."""

from pathlib import Path

import pytest
import torch

from models.likelihood import lack_of_sureness, nats_of_images
from models.trainable import TrainableModel
from pipeline.calibration import FITTED_ON, fit_logit_scale
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.learner import Learner
from pipeline.manifest import load_manifest, split_url
from pipeline.stream import evaluation_batches
from tests.conftest import LocalWorker
from tests.pipeline.test_train import changed

WORKER = LocalWorker("")


@pytest.fixture
def unsure(digits: Config) -> tuple[Config, TrainableModel]:
    """A model that learnt a little, whose logits are a fifth of what they should be."""
    config = changed(digits, model={"trained_logit_scale": True, "logit_scale": 4.0}, train={"steps": 60})
    torch.manual_seed(0)
    learner = Learner(config, WORKER, load_manifest(config, "train"))
    with learner.stream() as stream:
        for _ in range(60):
            learner.advance(next(stream))
    model = learner.model.eval()
    model.head.make_surer(torch.tensor([-1.6]))
    return config, model


def nats_and_lack(config: Config, model: TrainableModel) -> tuple[float, float]:
    """Nats of the images that are fitted on, and what larger logits would gain, both a sub-pixel."""
    manifest, nats, lack, count = load_manifest(config, "train"), 0.0, 0.0, 0
    for batch in evaluation_batches(config, manifest, 100, rank=0, world_size=1, images=FITTED_ON):
        with torch.no_grad():
            logits = model(batch.images, batch.labels)
        nats += nats_of_images(logits, batch.images).sum().item()
        lack += lack_of_sureness(logits, batch.images)[0].sum().item()
        count += batch.images.numel()
    assert count == FITTED_ON * 64
    return nats / count, lack / count


def test_fitted_factors_give_the_images_the_largest_likelihood(unsure: tuple[Config, TrainableModel]) -> None:
    config, model = unsure
    unfitted, lack = nats_and_lack(config, model)
    assert lack > 0.2
    fit_logit_scale(config, load_manifest(config, "train"), model, WORKER)
    fitted, lack = nats_and_lack(config, model)
    assert abs(lack) < 1e-4
    assert fitted < unfitted - 0.1
    for by in (-0.05, 0.1):
        model.head.make_surer(torch.tensor([by]))
        assert nats_and_lack(config, model)[0] > fitted


def test_nothing_but_the_factors_moves(unsure: tuple[Config, TrainableModel]) -> None:
    config, model = unsure
    before = {name: one.clone() for name, one in model.state_dict().items()}
    model.train()
    fit_logit_scale(config, load_manifest(config, "train"), model, WORKER)
    assert model.training
    moved = [name for name, one in model.state_dict().items() if not torch.equal(one, before[name])]
    assert moved == ["head.logits.log_scale"]


def test_model_without_factors_is_left_as_it_is(digits: Config) -> None:
    model = digits.build_model()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    fit_logit_scale(digits, load_manifest(digits, "train"), model, WORKER)
    assert [name for name, one in model.state_dict().items() if not torch.equal(one, before[name])] == []


def test_spoilt_shard_ends_the_fit_or_is_skipped_as_asked(
    unsure: tuple[Config, TrainableModel], capsys: pytest.CaptureFixture[str]
) -> None:
    config, model = unsure
    manifest = load_manifest(config, "train")
    shard = Path(split_url(config, "train"), manifest.shards[1].file)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=shard.name):
        fit_logit_scale(config, manifest, model, WORKER)
    skipping = changed(config, data={"on_bad_shard": "skip"})
    before = model.head.logits.log_scale.clone()
    fit_logit_scale(skipping, manifest, model, WORKER)
    assert model.head.logits.log_scale.item() > before.item()
    told = capsys.readouterr().out
    assert "fits the logits' scale without" in told
    assert shard.name in told
