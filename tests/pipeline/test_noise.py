"""Noise among what a model reads: how much, of which levels, and that nothing but training sees it."""

import pytest
import torch
from torch import Tensor

from models.trainable import DensityModel
from pipeline.config import Config
from pipeline.evaluate import evaluate
from pipeline.manifest import load_manifest
from pipeline.noise import with_random_levels
from pipeline.precision import ModelWithLosses
from tests.conftest import LocalWorker
from tests.pipeline.test_train import changed


def test_share_of_images_and_of_their_levels() -> None:
    torch.manual_seed(0)
    images = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8).to(memory_format=torch.channels_last)
    read = with_random_levels(images, 17, noisy_images=0.1, noisy_levels=0.25)
    changed_levels = (read != 0).flatten(1)
    noisy = changed_levels.any(1)
    assert noisy.float().mean() == pytest.approx(0.1, abs=0.03)
    # One replaced level in 17 stays as it was.
    assert changed_levels[noisy].float().mean() == pytest.approx(0.25 * 16 / 17, abs=0.02)
    assert set(read.unique().tolist()) == set(range(17))
    assert read.dtype == torch.uint8
    assert read.is_contiguous(memory_format=torch.channels_last)


class Remembering(DensityModel):
    """Gives what it read, and remembers what it had to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.predicted = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        return images

    def nats(self, outputs: Tensor, images: Tensor) -> Tensor:
        self.predicted = images
        return (outputs != images).float()

    def flops(self, height: int, width: int) -> int:
        return height * width


def test_true_images_are_predicted_from_noisy_ones(digits: Config) -> None:
    config = changed(digits, train={"noisy_images": 1.0, "noisy_levels": 1.0})
    model = Remembering()
    images = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    torch.manual_seed(0)
    different = ModelWithLosses(config, model, torch.device("cpu"))(images, torch.zeros(50, dtype=torch.int64)).sum()
    assert torch.equal(model.predicted, images)
    assert different / images.numel() == pytest.approx(16 / 17, abs=0.02)


def test_no_noise_unless_asked(digits: Config) -> None:
    images = torch.randint(0, 17, (50, 1, 8, 8), dtype=torch.uint8)
    before = torch.get_rng_state()
    assert not ModelWithLosses(digits, Remembering(), torch.device("cpu"))(
        images, torch.zeros(50, dtype=torch.int64)
    ).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_reads_no_noise(digits: Config) -> None:
    noisy = changed(digits, train={"noisy_images": 1.0, "noisy_levels": 1.0})
    differing = evaluate(noisy, load_manifest(noisy, "val"), Remembering(), LocalWorker(""), 50).total
    assert differing == 0.0
