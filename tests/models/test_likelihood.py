import itertools
import math

import pytest
import torch
from torch.nn import functional

from models.likelihood import bits_per_dim, lack_of_sureness, nats_of_images, nats_of_subpixels, sum_by_image


def test_nats_of_uniform_logits_are_log_levels_a_subpixel() -> None:
    images = torch.randint(0, 17, (5, 3, 2, 4), dtype=torch.uint8)
    nats = nats_of_images(torch.zeros(5, 3, 2, 4, 17), images)
    assert nats.dtype == torch.float64
    torch.testing.assert_close(nats, torch.full((5,), 24 * math.log(17), dtype=torch.float64), rtol=1e-6, atol=0)


def test_nats_pick_each_subpixels_own_logits() -> None:
    images = torch.randint(0, 3, (2, 3, 2, 4), dtype=torch.uint8)
    logits = torch.randn(2, 3, 2, 4, 3, dtype=torch.float64)
    by_hand = torch.zeros(2, 3, 2, 4, dtype=torch.float64)
    for b, c, y, x in itertools.product(range(2), range(3), range(2), range(4)):
        by_hand[b, c, y, x] = -logits[b, c, y, x].log_softmax(0)[int(images[b, c, y, x])]
    torch.testing.assert_close(nats_of_subpixels(logits, images), by_hand)
    torch.testing.assert_close(nats_of_images(logits, images), by_hand.sum((1, 2, 3)))


def test_nats_of_images_are_the_sums_of_float32_nats_in_float64() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    nats = nats_of_subpixels(10 * torch.randn(3, 3, 8, 8, 256), images)
    assert nats.dtype == torch.float32
    exact = [math.fsum(one.flatten().tolist()) for one in nats]
    assert sum_by_image(nats).tolist() == pytest.approx(exact, rel=1e-14)


def test_lack_of_sureness_is_slope_and_curvature_of_nats_by_a_colours_factor() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 5, (3, 3, 2, 4), dtype=torch.uint8)
    logits = 2 * torch.randn(3, 3, 2, 4, 5, dtype=torch.float64)
    factors = torch.ones(3, dtype=torch.float64, requires_grad=True)
    scaled = factors[:, None, None, None] * logits
    nats = functional.cross_entropy(scaled.flatten(0, 3), images.flatten().long(), reduction="sum")
    (slope,) = torch.autograd.grad(nats, factors, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), factors)  # colours don't meet, so the sum keeps them apart
    gain, variance = lack_of_sureness(logits, images)
    torch.testing.assert_close(gain, -slope.detach())
    torch.testing.assert_close(variance, curvature)
    log_probabilities = logits.log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum((0, 2, 3, 4))
    torch.testing.assert_close(gain, entropy - nats_of_subpixels(logits, images).sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradient_of_nats_equals_that_of_torchs_cross_entropy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 5, (3, 3, 2, 2), dtype=torch.uint8)
    logits = torch.randn(3, 3, 2, 2, 5).to(dtype).requires_grad_()
    weights = torch.rand(3, dtype=torch.float64)
    (ours,) = torch.autograd.grad((nats_of_images(logits, images) * weights).sum(), logits)
    by_level = logits.permute(0, 4, 1, 2, 3).to(torch.promote_types(dtype, torch.float32))
    each = functional.cross_entropy(by_level, images.long(), reduction="none").flatten(1).sum(1)
    (expected,) = torch.autograd.grad((each * weights).sum(), logits)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected)


def test_nats_of_bfloat16_logits_are_computed_in_float32() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    logits = torch.randn(2, 1, 4, 4, 256).bfloat16()
    assert torch.equal(nats_of_images(logits, images), nats_of_images(logits.float(), images))


def test_bits_per_dim_divides_once() -> None:
    assert bits_per_dim(math.log(2) * 6, num_images=2, dims=3) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="got 0 and 3"):
        bits_per_dim(1.0, num_images=0, dims=3)
