"""What is the Gated PixelCNN's own; what every model must satisfy stands in test_exactness.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from models.autoregressive import AutoregressiveModel
from models.conditioning import Conditioning
from models.gated_pixelcnn import GatedPixelCNN
from models.softmax_head import SoftmaxHead
from models.trainable import count_parameters
from tests.models.builders import build, condition_for


@given(
    channels=st.sampled_from([1, 3]),
    num_layers=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel_size=st.sampled_from([3, 5, 7]),
    head=st.integers(1, 4),
    condition_size=st.integers(0, 3),
    map_filters=st.integers(0, 3),
    levels=st.integers(2, 9),
)
@settings(max_examples=40, deadline=None)
def test_parameters_and_flops_equal_the_docstrings_formulas(
    channels: int,
    num_layers: int,
    groups: int,
    kernel_size: int,
    head: int,
    condition_size: int,
    map_filters: int,
    levels: int,
) -> None:
    p, q, size = channels * groups, channels * head, 9
    with torch.device("meta"):
        form = "map" if map_filters else "vector"
        conditioning = (
            Conditioning(size=condition_size, form=form, map_filters=map_filters, image_size=size)
            if (condition_size)
            else None
        )
        body = GatedPixelCNN(
            channels=channels,
            num_layers=num_layers,
            num_filters=p,
            kernel_size=kernel_size,
            conditioning=conditioning,
        )
        softmax = SoftmaxHead(num_features=p, head_filters=q, channels=channels, levels=levels)
        model = AutoregressiveModel(body=body, head=softmax)
    m, n, c = (kernel_size + 1) // 2, kernel_size, channels
    here_first, here = (c - 1) / (2 * c), (c + 1) / (2 * c)
    filters = (map_filters or condition_size) if condition_size else 0
    parameters = flops = 0.0
    for index in range(num_layers):
        i, t = (p, here) if index else (c, here_first)
        parameters += 2 * p * (m * n * i + 1) + 4 * p * p
        parameters += 2 * p * i * (n - 1) / 2 + 2 * p * i * t + 2 * p + p * p * here + p
        parameters += (2 if index == num_layers - 1 else 4) * p * filters
        flops += 2 * (m * n * i * 2 * p + 4 * p * p + 2 * p * i * (n - 1) / 2 + 2 * p * i * t + p * p * here)
    parameters += (p * q + q * c * levels) * here + q + c * levels
    flops = size**2 * (flops + 2 * (p * q + q * c * levels) * here)
    flops += (size**2 if map_filters else 1) * (8 * num_layers - 4) * p * filters
    if condition_size and map_filters:  # from 4 x 4 two doublings reach 9
        f, d = map_filters, condition_size
        parameters += 16 * f * d + 2 * 16 * f * f
        flops += 2 * 16 * f * d + 2 * 16 * f * f * 16 * (1 + 4)
    assert count_parameters(model) == round(parameters)
    assert model.flops(size, size) == round(flops)


def test_flops_of_a_grey_model_equal_those_that_torch_counts() -> None:
    model = build(channels=1, num_layers=3, num_filters=12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 6, 7, dtype=torch.uint8))
    zeros = 2 * 24 * 6 * 7  # torch also counts the position itself, which mask A leaves empty: 1 x 24 zeros
    assert counter.get_total_flops() == model.flops(6, 7) + zeros


def test_dropout_changes_training_and_not_evaluation() -> None:
    model = build("gated-label", dropout=0.5)
    images = torch.randint(0, 4, (2, 3, 4, 4), dtype=torch.uint8)
    labels = condition_for(model, 2)
    assert torch.equal(model(images, labels), model(images, labels))
    model.train()
    assert not torch.equal(model(images, labels), model(images, labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_filters": 7}, "num_filters must be a multiple of the 3 colour groups, got 7"),
        ({"head_filters": 8}, "head_filters must be a multiple"),
        ({"kernel_size": 4}, "kernel_size must be odd and at least 3, got 4"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"levels": 300}, "levels must be 2 to 256, got 300"),
    ],
)
def test_impossible_shapes_are_refused_with_the_argument_and_value(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**change)
