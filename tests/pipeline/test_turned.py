from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.config import Config
from pipeline.turned import kinds_of_turns, with_turns
from tests.pipeline.test_model_kinds import GATED, drawn_from, of_kind
from tests.pipeline.test_train import fit


def by_hand(image: np.ndarray, turn: int) -> np.ndarray:
    """An image [colour, row, column] turned in the way of that number."""
    if turn <= 3:
        return np.rot90(image, turn, axes=(1, 2))
    return image.transpose(0, 2, 1) if turn == 4 else image[::-1]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_turned_as_its_number_says(channels: int) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, channels, 4, 4), dtype=torch.uint8)
    turned, turns = with_turns(images, 0.6)
    assert turned.dtype == torch.uint8
    assert set(turns.tolist()) == {*range(kinds_of_turns(channels) + 1)}
    for image, found, turn in zip(images.numpy(), turned.numpy(), turns.tolist(), strict=True):
        np.testing.assert_array_equal(found, by_hand(image, turn))


def test_a_share_is_turned_in_all_ways_alike() -> None:
    torch.manual_seed(0)
    counts = Counter(with_turns(torch.zeros(20_000, 3, 2, 2, dtype=torch.uint8), 0.3)[1].tolist())
    assert counts[0] == pytest.approx(14_000, abs=300)
    assert all(counts[turn] == pytest.approx(1_200, abs=150) for turn in range(1, 6))


@pytest.mark.parametrize("conditional", [False, True])
def test_a_model_learns_turned_images_and_is_measured_and_drawn_from_without(conditional: bool, digits: Config) -> None:
    config = of_kind(digits, "gated-pixelcnn", **GATED, conditional=conditional, turned_images=0.5)
    other = of_kind(digits, "gated-pixelcnn", "straight", **GATED, conditional=conditional)
    turned, straight = fit(config)["val/bits_per_dim"], fit(other)["val/bits_per_dim"]
    assert turned != straight
    assert turned == pytest.approx(straight, abs=0.2)
    assert drawn_from(config)[1]["images"].shape == (4, 1, 8, 8)
