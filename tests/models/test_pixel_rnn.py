"""PixelRNN: what each sub-pixel sees, by gradient and by hand; its size and cost; and the ways torch may run it."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.pixel_rnn import PixelRNN

RECURRENCES = ["row", "diagonal"]


def build(recurrence: str, seed: int = 0, **changes: Any) -> PixelRNN:
    """A small body in float64 whose every parameter is away from zero."""
    arguments = {"channels": 3, "num_layers": 2, "num_filters": 6, "kernel_size": 3} | changes
    body = PixelRNN(recurrence=recurrence, **arguments).double()
    torch.manual_seed(seed)
    for parameter in body.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return body


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dependence(body: PixelRNN, height: int, width: int) -> Tensor:
    """For each feature group of each position (rows) whether each input sub-pixel (columns) reaches it.

    Feature group g stands for sub-pixel g of its position; both sides are in raster order.
    """
    dims = body.channels * height * width
    scaled = random_images(body.channels, height, width).expand(dims, -1, -1, -1).clone().requires_grad_()
    groups = body(scaled).unflatten(1, (body.channels, -1))
    outputs = torch.einsum("bgfhw,f->bhwg", groups, random_images(groups.shape[2], seed=1)).flatten(1)
    (gradient,) = torch.autograd.grad(outputs.diagonal().sum(), scaled)  # image n serves output n alone
    return gradient.permute(0, 2, 3, 1).flatten(1) != 0


def seen_by_row_lstm(up: int, across: int, num_layers: int, reach: int, state_reach: int) -> bool:
    """Whether a pixel `up` rows above, `across` columns to the right (left if negative) is in the triangle."""
    if up == 0:
        return -(reach + num_layers) <= across < 0
    return -(up * state_reach + num_layers + reach) <= across <= (up - 1) * state_reach + reach


def expected_dependence(body: PixelRNN, height: int, width: int, reach: int, state_reach: int) -> Tensor:
    """By hand, from the docstring's receptive field; here, the earlier colours."""
    channels, num_layers = body.channels, len(body.blocks)
    positions = list(itertools.product(range(height), range(width), range(channels)))
    expected = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for index, (y, x, c) in enumerate(positions):
        for other, (v, u, d) in enumerate(positions[:index]):
            here = v == y and u == x and d < c
            if state_reach:
                expected[index, other] = here or seen_by_row_lstm(y - v, u - x, num_layers, reach, state_reach)
            else:
                last_of_the_row_above = (v, u, d) == (y - 1, width - 1, channels - 1)
                expected[index, other] = not last_of_the_row_above or x + reach >= u
    return expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("recurrence", "num_layers", "kernel_size", "state_kernel_size"),
    [
        ("row", 1, 3, 3),
        ("row", 2, 3, 3),
        ("row", 1, 5, 3),
        ("row", 1, 5, 5),
        ("diagonal", 1, 3, 3),
        ("diagonal", 2, 3, 3),
        ("diagonal", 1, 5, 3),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_each_subpixel_depends_on_exactly_what_it_may_see(
    channels: int, recurrence: str, num_layers: int, kernel_size: int, state_kernel_size: int, plain: bool
) -> None:
    height, width = 4, 8
    body = build(
        recurrence,
        channels=channels,
        num_layers=num_layers,
        num_filters=2 * channels,
        kernel_size=kernel_size,
        state_kernel_size=state_kernel_size,
        residual=not plain,
        skip=not plain,
    )
    reached = dependence(body, height, width)
    assert not (reached & ~torch.ones_like(reached).tril(-1)).any(), "a sub-pixel depends on itself or on a later one"
    state_reach = state_kernel_size // 2 if recurrence == "row" else 0
    assert torch.equal(reached, expected_dependence(body, height, width, kernel_size // 2, state_reach))


@pytest.mark.parametrize(("height", "width"), [(1, 4), (4, 1), (1, 1), (5, 2)])
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_narrow_images_leak_nothing(recurrence: str, height: int, width: int) -> None:
    reached = dependence(build(recurrence), height, width)
    assert not (reached & ~torch.ones_like(reached).tril(-1)).any()


@given(
    recurrence=st.sampled_from(RECURRENCES),
    channels=st.sampled_from([1, 3]),
    num_layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel_size=st.sampled_from([3, 5, 7]),
    state_kernel_size=st.sampled_from([3, 5]),
    skip=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_parameters_and_flops_equal_the_docstrings_formulas(
    recurrence: str,
    channels: int,
    num_layers: int,
    groups: int,
    kernel_size: int,
    state_kernel_size: int,
    skip: bool,
) -> None:
    h, height, width = channels * groups, 4, 5
    with torch.device("meta"):
        body = PixelRNN(
            channels=channels,
            recurrence=recurrence,
            num_layers=num_layers,
            num_filters=h,
            kernel_size=kernel_size,
            state_kernel_size=state_kernel_size,
            skip=skip,
        )
    reach, t = kernel_size // 2, (channels + 1) / (2 * channels)
    first = 2 * h * channels * (reach * (2 * reach + 1) + reach + (channels - 1) / (2 * channels))
    row = 8 * h * h * (1 + t) + 4 * h * h * state_kernel_size
    layer, biases = (row, 4 * h) if recurrence == "row" else (16 * h * h * t + 16 * h * h, 8 * h)
    block = layer + 2 * h * h * t * (1 + skip)
    weights = first + num_layers * block
    assert sum(one.numel() for one in body.parameters()) == round(
        weights + 2 * h + num_layers * (biases + 2 * h * (1 + skip))
    )
    assert body.flops(height, width) == round(2 * weights * height * width)
    assert body.num_features == 2 * h


def check_compiled_equals_eager(recurrence: str, backend: str, channels: int, skip: bool) -> None:
    body = build(recurrence, channels=channels, num_layers=1, num_filters=3, skip=skip)
    images, parameters = random_images(2, channels, 4, 5), list(body.parameters())
    eager, features = body(images), torch.compile(body, fullgraph=True, backend=backend)(images)
    torch.testing.assert_close(features, eager, rtol=0, atol=1e-12)
    weights = random_images(*eager.shape, seed=1)
    expected = torch.autograd.grad((eager * weights).sum(), parameters)
    gradients = torch.autograd.grad((features * weights).sum(), parameters)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10)


def test_compiled_equals_eager_in_features_and_gradients() -> None:
    """In a process of its own: torch.compile can't trace the type checks that pytest adds to the models.

    Inductor takes seconds for each kernel it compiles, so it gets the smallest model.
    """
    cases = [("row", "aot_eager", 3, True), ("diagonal", "inductor", 1, False)]
    calls = "; ".join(f"checks.check_compiled_equals_eager{case!r}" for case in cases)
    code = f"import tests.models.test_pixel_rnn as checks; {calls}"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_autocast_to_bfloat16_stays_near_float32(recurrence: str) -> None:
    torch.manual_seed(0)
    body = PixelRNN(channels=3, recurrence=recurrence, num_layers=3, num_filters=12)
    images = random_images(2, 3, 16, 16).float()
    features = body(images)
    with torch.autocast("cpu", torch.bfloat16):
        low = body(images)
    assert low.dtype == torch.bfloat16
    assert (low - features).norm() < 0.01 * features.norm()
    gradients = torch.autograd.grad(low.float().square().sum(), list(body.parameters()))
    expected = torch.autograd.grad(features.square().sum(), list(body.parameters()))
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_filters": 7}, "num_filters must be a multiple of the 3 colour groups, got 7"),
        ({"kernel_size": 4}, "kernel_size must be odd and at least 3, got 4"),
        ({"state_kernel_size": 2}, "kernel_size must be odd and at least 3, got 2"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"num_layers": 0}, "num_layers at least 1"),
    ],
)
def test_impossible_shapes_are_refused_with_the_argument_and_value(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("row", **change)
