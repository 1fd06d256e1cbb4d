"""The four checks that catch every known defect: normalisation, no leak, no blind spot, every colour edge."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from models.gated_pixelcnn import GatedPixelCNN, count_parameters, empty_model
from models.likelihood import nats_of_images


def build(seed: int = 0, **changes: float) -> GatedPixelCNN:
    """A small model in float64 whose every parameter, biases of labels included, is away from zero."""
    arguments = {
        "channels": 3,
        "levels": 4,
        "num_layers": 2,
        "num_filters": 12,
        "kernel_size": 3,
        "head_filters": 36,
        "num_classes": 2,
    } | changes
    torch.manual_seed(seed)
    model = GatedPixelCNN(**arguments).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def labels_for(model: GatedPixelCNN, count: int) -> torch.Tensor | None:
    return torch.arange(count) % model.num_classes if model.num_classes else None


@pytest.mark.parametrize(
    ("channels", "levels", "height", "width"), [(1, 2, 3, 3), (1, 3, 2, 3), (1, 5, 2, 2), (3, 2, 1, 3), (3, 2, 2, 1)]
)
@pytest.mark.parametrize("num_classes", [0, 2])
def test_probabilities_of_all_images_sum_to_one(
    channels: int, levels: int, height: int, width: int, num_classes: int
) -> None:
    model = build(channels=channels, levels=levels, num_classes=num_classes)
    dims = channels * height * width
    images = torch.tensor(list(itertools.product(range(levels), repeat=dims)), dtype=torch.uint8)
    images = images.view(-1, channels, height, width)
    for label in range(max(1, num_classes)):
        labels = torch.full((len(images),), label) if num_classes else None
        with torch.no_grad():
            nats = nats_of_images(model(images, labels), images)
        assert len(images) == levels**dims
        assert abs((-nats).exp().sum().item() - 1.0) < 1e-6


def dependence(model: GatedPixelCNN, height: int, width: int) -> torch.Tensor:
    """For each output sub-pixel (rows) whether each input sub-pixel (columns) reaches it, in raster order."""
    dims = model.channels * height * width
    reached = torch.zeros(dims, dims, dtype=torch.bool)
    for attempt in range(2):
        torch.manual_seed(attempt)
        scaled = torch.randn(1, model.channels, height, width, dtype=torch.float64, requires_grad=True)
        logits = model.logits_of_scaled(scaled, labels_for(model, 1))
        weights = torch.randn(model.levels, dtype=torch.float64)
        outputs = (logits @ weights).permute(0, 2, 3, 1).flatten()
        for index, output in enumerate(outputs):
            (gradient,) = torch.autograd.grad(output, scaled, retain_graph=True)
            reached[index] |= gradient[0].permute(1, 2, 0).flatten() != 0
    return reached


def expected_dependence(channels: int, height: int, width: int, num_layers: int, kernel_size: int) -> torch.Tensor:
    """By hand: above, all in the vertical stack's cone; to the left, all within reach; here, the earlier colours."""
    reach = num_layers * (kernel_size // 2)
    positions = list(itertools.product(range(height), range(width), range(channels)))
    expected = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for index, (y, x, c) in enumerate(positions):
        for other, (v, u, d) in enumerate(positions):
            beside = v == y and x - reach <= u < x
            here = v == y and u == x and d < c
            expected[index, other] = (
                beside or here or (v < y and _seen_from_above(y - v, u - x, num_layers, kernel_size))
            )
    return expected


def _seen_from_above(rows_up: int, columns: int, num_layers: int, kernel_size: int) -> bool:
    """Whether a pixel above is reached: k layers of the vertical stack, then num_layers - k of the horizontal one."""
    half = kernel_size // 2
    for vertical_layers in range(1, num_layers + 1):
        left = (num_layers - vertical_layers) * half
        in_rows = rows_up <= vertical_layers * half + 1
        if in_rows and -vertical_layers * half - left <= columns <= vertical_layers * half:
            return True
    return False


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num_layers", "kernel_size"), [(1, 3), (2, 3), (3, 3), (2, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_each_subpixel_depends_on_exactly_what_it_may_see(
    channels: int, num_layers: int, kernel_size: int, training: bool
) -> None:
    height, width = 5, 5
    reached = torch.zeros(channels * height * width, channels * height * width, dtype=torch.bool)
    for seed in range(3):  # a ReLU of the head may hide an edge of one random model, not of three
        model = build(seed, channels=channels, num_layers=num_layers, kernel_size=kernel_size).train(training)
        reached |= dependence(model, height, width)
    earlier = torch.ones_like(reached).tril(-1)
    assert not (reached & ~earlier).any(), "a sub-pixel depends on itself or on a later one"
    assert torch.equal(reached, expected_dependence(channels, height, width, num_layers, kernel_size))


def test_deep_enough_there_is_no_blind_spot() -> None:
    model = build(channels=3, num_layers=4, num_classes=0)
    reached = dependence(model, 4, 5)
    assert torch.equal(reached, torch.ones_like(reached).tril(-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_label_reaches_every_subpixel_in_every_layer(channels: int) -> None:
    model = build(channels=channels)
    images = torch.randint(0, 4, (1, channels, 3, 3), dtype=torch.uint8)
    difference = model(images, torch.tensor([0])) - model(images, torch.tensor([1]))
    assert (difference.abs().amax(-1) > 0).all()
    for layer in model.layers:
        for stack in (layer.vertical_label, layer.horizontal_label):
            if stack is None:
                assert layer is model.layers[-1], "only the last layer's vertical output goes nowhere"
                continue
            with torch.no_grad():
                before = model(images, torch.tensor([0]))
                stack.weight[0] += 1.0
                assert ((model(images, torch.tensor([0])) - before) != 0).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_parameter_gets_a_gradient(channels: int, num_layers: int) -> None:
    model = build(channels=channels, num_layers=num_layers)
    images = torch.randint(0, 4, (4, channels, 4, 4), dtype=torch.uint8)
    nats_of_images(model(images, labels_for(model, 4)), images).sum().backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []


@given(
    channels=st.sampled_from([1, 3]),
    num_layers=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel_size=st.sampled_from([3, 5, 7]),
    head=st.integers(1, 4),
    num_classes=st.integers(0, 3),
    levels=st.integers(2, 9),
)
@settings(max_examples=25, deadline=None)
def test_parameters_and_flops_equal_the_docstrings_formulas(
    channels: int, num_layers: int, groups: int, kernel_size: int, head: int, num_classes: int, levels: int
) -> None:
    p, q, height, width = channels * groups, channels * head, 4, 5
    model = empty_model(
        channels=channels,
        levels=levels,
        num_layers=num_layers,
        num_filters=p,
        kernel_size=kernel_size,
        head_filters=q,
        num_classes=num_classes,
    )
    m, n, c = (kernel_size + 1) // 2, kernel_size, channels
    here_first, here = (c - 1) / (2 * c), (c + 1) / (2 * c)
    parameters = flops = 0.0
    for index in range(num_layers):
        i, t = (p, here) if index else (c, here_first)
        parameters += 2 * p * (m * n * i + 1) + 2 * p * (2 * p + 1)
        parameters += 2 * p * i * (n - 1) / 2 + 2 * p * i * t + 2 * p + p * p * here + p
        parameters += (2 if index == num_layers - 1 else 4) * p * num_classes
        flops += 2 * (m * n * i * 2 * p + 4 * p * p + 2 * p * i * (n - 1) / 2 + 2 * p * i * t + p * p * here)
    parameters += (p * q + q * c * levels) * here + q + c * levels
    flops += 2 * (p * q + q * c * levels) * here
    assert count_parameters(model) == round(parameters)
    assert model.flops(height, width) == round(flops * height * width)


def test_flops_of_a_grey_model_equal_those_that_torch_counts() -> None:
    model = build(channels=1, num_classes=0, num_layers=3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 6, 7, dtype=torch.uint8))
    zeros = 2 * 24 * 6 * 7  # torch also counts the position itself, which mask A leaves empty: 1 x 24 zeros
    assert counter.get_total_flops() == model.flops(6, 7) + zeros


def test_state_dict_loads_weights_only_and_gives_the_same_logits(tmp_path) -> None:
    model, other = build(seed=1), build(seed=2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    images = torch.randint(0, 4, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(model(images, labels_for(model, 2)), other(images, labels_for(other, 2)))


def test_channels_last_gives_the_same_logits() -> None:
    model = build()
    images = torch.randint(0, 4, (2, 3, 5, 4), dtype=torch.uint8)
    plain = model(images, labels_for(model, 2))
    strided = model.to(memory_format=torch.channels_last)(
        images.contiguous(memory_format=torch.channels_last), labels_for(model, 2)
    )
    torch.testing.assert_close(strided, plain, rtol=0, atol=1e-12)


def test_dropout_changes_training_and_not_evaluation() -> None:
    model = build(dropout=0.5)
    images = torch.randint(0, 4, (2, 3, 4, 4), dtype=torch.uint8)
    labels = labels_for(model, 2)
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
        ({"levels": 300}, "levels 2 to 256"),
    ],
)
def test_impossible_shapes_are_refused_with_the_argument_and_value(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_labels_must_be_given_exactly_when_conditional() -> None:
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="got no labels"):
        build()(images)
    with pytest.raises(ValueError, match="a model of 0 classes got labels"):
        build(num_classes=0)(images, torch.tensor([0]))


def test_untrained_model_is_near_the_uniform_density() -> None:
    torch.manual_seed(0)
    model = GatedPixelCNN(channels=3, levels=256, num_layers=3, num_filters=12, kernel_size=5, head_filters=30)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        bits = nats_of_images(model(images), images).mean().item() / math.log(2) / images[0].numel()
    assert 7.9 < bits < 8.2
