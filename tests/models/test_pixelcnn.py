"""What is the PixelCNN's own; what every model must satisfy stands in test_exactness.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models.causal_conv import CausalConv
from models.pixelcnn import PixelCNN
from models.trainable import count_parameters
from tests.models.builders import build
from tests.models.test_exactness import dependence


def mask(channels: int, in_filters: int, out_filters: int, kernel_size: int, mask_type: str) -> torch.Tensor:
    """The mask of a full n x n kernel, written from the definition: group by group, position by position."""
    middle = kernel_size // 2
    allowed = torch.zeros(out_filters, in_filters, kernel_size, kernel_size)
    for out in range(out_filters):
        for inward in range(in_filters):
            to, of = out * channels // out_filters, inward * channels // in_filters
            allowed[out, inward, :middle] = 1
            allowed[out, inward, middle, :middle] = 1
            allowed[out, inward, middle, middle] = float(of < to or (of == to and mask_type == "B"))
    return allowed


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_cropped_convolution_equals_the_masked_full_kernel(mask_type: str, channels: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv(2 * channels, 3 * channels, kernel_size, channels, mask_type).double()
    features = torch.randn(2, 2 * channels, 6, 5, dtype=torch.float64)
    full = functional.pad(conv.kernel_and_bias()[0], (0, 0, 0, kernel_size // 2)).detach()
    allowed = mask(channels, 2 * channels, 3 * channels, kernel_size, mask_type)
    assert torch.equal(full != 0, allowed != 0)
    expected = functional.conv2d(features, full * allowed, conv.current.bias, padding=kernel_size // 2)
    torch.testing.assert_close(conv(features), expected, rtol=0, atol=1e-12)


@given(
    channels=st.sampled_from([1, 3]),
    num_layers=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel_size=st.sampled_from([3, 5]),
    first_kernel_size=st.sampled_from([3, 5, 7]),
)
@settings(max_examples=25, deadline=None)
def test_parameters_and_flops_equal_the_docstrings_formulas(
    channels: int, num_layers: int, groups: int, kernel_size: int, first_kernel_size: int
) -> None:
    h, c = channels * groups, channels
    with torch.device("meta"):
        body = PixelCNN(
            channels=c,
            num_layers=num_layers,
            num_filters=h,
            kernel_size=kernel_size,
            first_kernel_size=first_kernel_size,
        )
    big, r = first_kernel_size // 2, kernel_size // 2
    here_first, t = (c - 1) / (2 * c), (c + 1) / (2 * c)
    first = 2 * h * c * (big * (2 * big + 1) + big + here_first)
    block = 4 * h * h * t + h * h * (r * (2 * r + 1) + r + t)
    assert count_parameters(body) == round(first + 2 * h + num_layers * (block + 4 * h))
    assert body.flops(4, 5) == round(2 * 20 * (first + num_layers * block))


@pytest.mark.parametrize(("first", "kernel", "num_layers"), [(7, 3, 1), (3, 5, 1), (5, 3, 2)])
def test_blind_spot_is_what_the_docstring_says(first: int, kernel: int, num_layers: int) -> None:
    size, big, r = 9, first // 2, kernel // 2
    reached = torch.zeros(size**2, size**2, dtype=torch.bool)
    for seed in range(4):
        arguments = {"first_kernel_size": first, "kernel_size": kernel, "num_layers": num_layers}
        reached |= dependence(build("pixelcnn", seed, channels=1, **arguments), size, size)
    field = big + num_layers * r
    for index in range(size**2):
        for other in range(size**2):
            up, right = index // size - other // size, other % size - index % size
            beside = up == 0 and -field <= right < 0
            above = 1 <= up <= field and -field <= right <= big + r * min(num_layers, up - 1)
            assert reached[index, other].item() == (beside or above)
