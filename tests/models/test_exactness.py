"""Every model and conditioning, grey and colour: normalised, no leak, exactly the receptive field computed by hand."""

import itertools

import pytest
import torch

from models.autoregressive import AutoregressiveModel
from models.likelihood import nats_of_images
from models.softmax_head import SoftmaxHead
from tests.models.builders import KINDS, build, condition_for

REACH = 1
"""Of the 3x3 and 1x3 kernels that these small models are built with."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "levels", "height", "width"), [(1, 3, 2, 3), (1, 2, 3, 3), (3, 2, 2, 1), (3, 2, 1, 2)]
)
def test_probabilities_of_all_images_sum_to_one(kind: str, channels: int, levels: int, height: int, width: int) -> None:
    if "map" in kind and height != width:
        height = width = 3 if channels == 1 else 1
        levels = 2 if channels == 1 else 5
    model = build(kind, channels=channels, levels=levels, image_size=height)
    dims = channels * height * width
    images = torch.tensor(list(itertools.product(range(levels), repeat=dims)), dtype=torch.uint8)
    images = images.view(-1, channels, height, width)
    choices = condition_for(model, 2)
    for choice in [None] if choices is None else choices:
        condition = None if choice is None else choice.expand(len(images), *choice.shape)
        with torch.no_grad():
            nats = nats_of_images(model(images, condition), images)
        assert len(images) == levels**dims
        assert abs((-nats).exp().sum().item() - 1.0) < 1e-6


def dependence(model: AutoregressiveModel, height: int, width: int) -> torch.Tensor:
    """For each output sub-pixel (rows) whether each input sub-pixel (columns) reaches it, in raster order.

    Each output is taken from a copy of the image of its own, so one backward pass gives all gradients.
    """
    dims = model.channels * height * width
    reached = torch.zeros(dims, dims, dtype=torch.bool)
    for attempt in range(2):
        torch.manual_seed(attempt)
        image = torch.randn(1, model.channels, height, width, dtype=torch.float64)
        copies = image.repeat(dims, 1, 1, 1).requires_grad_()
        logits = model.logits_of_scaled(copies, model.vectors(condition_for(model, dims)))
        weights = torch.randn(model.levels, dtype=torch.float64)
        outputs = (logits @ weights).permute(0, 2, 3, 1).flatten(1)
        (gradients,) = torch.autograd.grad(outputs.diagonal().sum(), copies)
        reached |= gradients.permute(0, 2, 3, 1).flatten(1) != 0
    return reached


def sees(kind: str, num_layers: int, rows_up: int, columns: int) -> bool:
    """Whether a pixel so many rows above and columns to the right (left: below 0) is in the field computed by hand."""
    if rows_up < 0 or (rows_up == 0 and columns >= 0):
        return False
    if kind == "diagonal":
        return True
    field = num_layers * REACH + (0 if kind == "gated" else REACH)  # PixelCNN and PixelRNN have a first convolution
    if kind == "gated":
        return rows_up <= field + 1 and -field <= columns <= (field if rows_up else -1)
    if kind == "pixelcnn":
        right = REACH + REACH * min(num_layers, rows_up - 1)
        return rows_up <= field and -field <= columns <= (right if rows_up else -1)
    return -field - rows_up * REACH <= columns <= (REACH + (rows_up - 1) * REACH if rows_up else -1)


def ends_a_row_unseen(
    kind: str, place: tuple[int, int], other: tuple[int, int, int], channels: int, width: int
) -> bool:
    """Diagonal BiLSTM's gap: a row's last sub-pixel is in no feature of its row, below in the first kernel alone."""
    last = other == (place[0] - 1, width - 1, channels - 1)
    return kind == "diagonal" and last and width - 1 - place[1] > REACH


def expected_dependence(kind: str, channels: int, height: int, width: int, num_layers: int) -> torch.Tensor:
    """The pixels that the field holds in all their colours, and at the position itself the earlier colours."""
    positions = list(itertools.product(range(height), range(width), range(channels)))
    expected = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for index, (y, x, c) in enumerate(positions):
        for other, (v, u, d) in enumerate(positions):
            here = (v, u) == (y, x) and d < c
            above_or_left = sees(kind.split("-")[0], num_layers, y - v, u - x)
            gap = ends_a_row_unseen(kind, (y, x), (v, u, d), channels, width)
            expected[index, other] = here or (above_or_left and not gap)
    return expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_each_subpixel_depends_on_exactly_what_it_may_see(
    kind: str, channels: int, num_layers: int, training: bool
) -> None:
    size = 5
    reached = torch.zeros(channels * size**2, channels * size**2, dtype=torch.bool)
    for seed in range(4):  # ReLUs may hide an edge of one random model, not of four
        model = build(seed=seed, kind=kind, channels=channels, num_layers=num_layers, image_size=size).train(training)
        reached |= dependence(model, size, size)
    earlier = torch.ones_like(reached).tril(-1)
    assert not (reached & ~earlier).any(), "a sub-pixel depends on itself or on a later one"
    assert torch.equal(reached, expected_dependence(kind, channels, size, size, num_layers))


def test_blind_spot_is_there_in_pixelcnn_and_row_lstm_and_in_no_other() -> None:
    """Deep enough to see the whole image but for the blind spot; Diagonal BiLSTM misses a row's end (its docstring)."""
    size, missing = 5, {}
    earlier = torch.ones(size**2, size**2, dtype=torch.bool).tril(-1)
    for kind in ("gated", "pixelcnn", "row", "diagonal"):
        reached = torch.zeros_like(earlier)
        for seed in range(3):
            reached |= dependence(build(kind, seed, channels=1, num_layers=5), size, size)
        missing[kind] = int((earlier & ~reached).sum())
    assert missing["gated"] == 0
    assert missing["diagonal"] == (size - 1) * (size - 1 - REACH)  # the end of each row but the last, too far away
    assert missing["pixelcnn"] == missing["row"] > missing["diagonal"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "-" in kind])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_condition_reaches_every_subpixel_in_every_layer(kind: str, channels: int, training: bool) -> None:
    model = build(kind, channels=channels, image_size=4, num_layers=3).train(training)
    images = torch.randint(0, 4, (1, channels, 4, 4), dtype=torch.uint8)
    choices = condition_for(model, 2)
    assert choices is not None
    first, second = choices[:1], choices[1:]
    reached = torch.zeros(1, channels, 4, 4, dtype=torch.bool)
    for seed in range(4):  # ReLUs may hide an edge of one random model, not of four
        other = build(kind, seed, channels=channels, image_size=4, num_layers=3).train(training)
        reached |= (other(images, first) != other(images, second)).any(-1)
    assert reached.all()
    terms = [term for layer in model.body.layers for term in (layer.vertical_term, layer.horizontal_term)]
    assert [index for index, term in enumerate(terms) if term is None] == [4], "the last vertical output goes nowhere"
    for term in terms:
        if term is not None:
            with torch.no_grad():
                before = model(images, first)
                term.weight += 0.5
                assert (model(images, first) != before).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_parameter_gets_a_gradient(kind: str, channels: int, num_layers: int) -> None:
    model = build(kind, channels=channels, num_layers=num_layers, image_size=4)
    images = torch.randint(0, 4, (4, channels, 4, 4), dtype=torch.uint8)
    nats_of_images(model(images, condition_for(model, 4)), images).sum().backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_loads_weights_only_and_gives_the_same_logits(kind: str, tmp_path) -> None:
    model, other = build(kind, seed=1), build(kind, seed=2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    images = torch.randint(0, 4, (2, 3, 3, 3), dtype=torch.uint8)
    assert torch.equal(model(images, condition_for(model, 2)), other(images, condition_for(other, 2)))


def test_logit_scale_multiplies_the_logits_of_the_same_weights() -> None:
    images = torch.randint(0, 4, (2, 3, 3, 3), dtype=torch.uint8)
    plain, scaled = build()(images), build(logit_scale=3.0)(images)
    torch.testing.assert_close(scaled, 3.0 * plain, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="logit_scale must be above 0, got 0"):
        build(logit_scale=0.0)


def test_trained_logit_scale_is_a_factor_of_each_colour_that_starts_at_one() -> None:
    images = torch.randint(0, 4, (2, 3, 3, 3), dtype=torch.uint8)
    plain, scaled = build(), build(trained_logit_scale=True)
    scaled.load_state_dict(plain.state_dict() | {"head.logits.log_scale": torch.tensor([0.0, 0.25, -0.5])})
    factors = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64).exp()[:, None, None, None]
    torch.testing.assert_close(scaled(images), factors * plain(images), rtol=1e-12, atol=1e-12)
    fresh = SoftmaxHead(num_features=12, head_filters=12, channels=3, levels=4, trained_logit_scale=True)
    assert fresh.logits.log_scale is not None
    assert not fresh.logits.log_scale.any()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_gives_the_same_logits(kind: str) -> None:
    model = build(kind)
    images = torch.randint(0, 4, (2, 3, 3, 3), dtype=torch.uint8)
    plain = model(images, condition_for(model, 2))
    strided = model.to(memory_format=torch.channels_last)(
        images.contiguous(memory_format=torch.channels_last), condition_for(model, 2)
    )
    torch.testing.assert_close(strided, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_and_eager_agree_in_logits_nats_and_gradients(kind: str) -> None:
    """The whole graph without a break; aot_eager traces it as the compiler of a GPU does, without its minutes."""
    torch._dynamo.reset()
    model = build(kind, channels=1)
    images, condition = torch.randint(0, 4, (2, 1, 3, 3), dtype=torch.uint8), condition_for(model, 2)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(images, condition)
        return logits, nats_of_images(logits, images)

    gradients = []
    for run in (outputs, torch.compile(outputs, backend="aot_eager", fullgraph=True)):
        logits, nats = run()
        gradients.append((logits, nats, torch.autograd.grad(nats.sum(), model.parameters())))
    (eager_logits, eager_nats, eager), (logits, nats, traced) = gradients
    torch.testing.assert_close(logits, eager_logits, rtol=0, atol=1e-11)
    torch.testing.assert_close(nats, eager_nats, rtol=0, atol=1e-10)
    for one, other in zip(eager, traced, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_within_a_hundredth_of_a_nat_a_subpixel_of_float32(kind: str) -> None:
    torch.manual_seed(0)
    model = build(kind, levels=16, image_size=8).float()
    for parameter in model.parameters():  # of the size of trained weights, not of the exactness tests' large ones
        with torch.no_grad():
            parameter *= 0.3
    images = torch.randint(0, 16, (4, 3, 8, 8), dtype=torch.uint8)
    condition = condition_for(model, 4)
    with torch.no_grad():
        exact = nats_of_images(model(images, condition), images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = nats_of_images(model(images, condition), images)
    assert (rough - exact).abs().max() / images[0].numel() < 0.01
