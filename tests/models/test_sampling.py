import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.autoregressive import AutoregressiveModel
from models.likelihood import nats_of_images
from models.sampling import choose_levels, draw, random_numbers
from tests.models.builders import KINDS, build, condition_for


def draw_by_whole_passes(model: AutoregressiveModel, height: int, width: int, seeds: list[int]) -> torch.Tensor:
    """The reference: a pass of the whole network for every sub-pixel, from the same random numbers."""
    channels = model.channels
    images = torch.zeros(len(seeds), channels, height, width, dtype=torch.uint8)
    uniform = random_numbers(seeds, channels * height * width).view(-1, height, width, channels)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                with torch.no_grad():
                    logits = model(images, condition_for(model, len(seeds)))[:, c, y, x]
                images[:, c, y, x] = choose_levels(logits, uniform[:, y, x, c])[0].to(torch.uint8)
    return images


@given(
    kind=st.sampled_from(KINDS),
    channels=st.sampled_from([1, 3]),
    num_layers=st.integers(1, 4),
    kernel_size=st.sampled_from([3, 5]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_images_and_likelihood_equal_those_of_whole_passes(
    kind: str, channels: int, num_layers: int, kernel_size: int, height: int, width: int, seed: int
) -> None:
    width = height if "map" in kind else width
    arguments = {"channels": channels, "num_layers": num_layers, "kernel_size": kernel_size, "image_size": height}
    model = build(kind, seed, **arguments)
    seeds = [seed, seed + 1, seed + 2]
    condition = condition_for(model, 3)
    samples = draw(model, height=height, width=width, seeds=seeds, condition=condition)
    assert torch.equal(samples.images, draw_by_whole_passes(model, height, width, seeds))
    with torch.no_grad():
        teacher_forced = nats_of_images(model(samples.images, condition), samples.images)
    torch.testing.assert_close(samples.nats, teacher_forced, rtol=0, atol=1e-10)


def test_an_image_is_the_same_in_whatever_batch() -> None:
    model = build("gated-label")
    together = draw(model, height=4, width=4, seeds=[7, 8, 9], condition=torch.tensor([1, 0, 1]))
    alone = draw(model, height=4, width=4, seeds=[9], condition=torch.tensor([1]))
    assert torch.equal(together.images[2:], alone.images)


def test_drawn_levels_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]], dtype=torch.float64).expand(20000, 4)
    levels, nats = choose_levels(
        logits, torch.rand(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    frequencies = torch.bincount(levels, minlength=4) / 20000
    torch.testing.assert_close(frequencies.double(), logits[0].softmax(0), rtol=0, atol=0.01)
    torch.testing.assert_close(nats[0], -logits[0].log_softmax(0)[levels[0]])


def test_low_temperature_draws_the_most_probable_level() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    levels, _ = choose_levels(
        logits.expand(50, 3), torch.linspace(0.001, 0.999, 50, dtype=torch.float64), temperature=0.01
    )
    assert (levels == 1).all()


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        draw(build("gated-label"), height=2, width=2, seeds=[0], condition=torch.tensor([0]), temperature=0.0)
    with pytest.raises(ValueError, match="got a condition for 1 images and 2 seeds"):
        draw(build("gated-label"), height=2, width=2, seeds=[0, 1], condition=torch.tensor([0]))


def test_drawing_leaves_mode_and_global_random_numbers_alone() -> None:
    model = build("gated-label", dropout=0.3).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(model, height=2, width=2, seeds=[0], condition=torch.tensor([0]))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
