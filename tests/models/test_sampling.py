import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.autoregressive import AutoregressiveModel
from models.likelihood import nats_of_images
from models.sampling import Known, choose_levels, draw, random_numbers
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "bound", "share"), [(torch.float64, 1e-10, 0.0), (torch.float32, 1e-4, 2e-6)])
def test_logits_met_are_the_teacher_forced_ones(
    kind: str, channels: int, dtype: torch.dtype, bound: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each logit that the sampler meets, against one pass over the finished images."""
    model = build(kind, 3, channels=channels, image_size=5, logit_scale=2.0, trained_logit_scale=True).to(dtype)
    condition = condition_for(model, 2)
    met = []

    def recorded(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        met.append(logits.clone())
        return choose_levels(logits, uniform, temperature)

    monkeypatch.setattr("models.sampling.choose_levels", recorded)
    images = draw(model, height=5, width=5, seeds=[0, 1], condition=condition).images
    with torch.no_grad():
        expected = model(images, condition)
    together = torch.stack(met, dim=1).view(2, 5, 5, channels, -1).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(together, expected, rtol=share, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_given_pixels_are_kept_and_the_rest_is_drawn_given_them(kind: str) -> None:
    model = build(kind, 1, channels=3, image_size=4)
    condition = condition_for(model, 2)
    whole = draw(model, height=4, width=4, seeds=[5, 6], condition=condition)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2], mask[1, 2, 0] = True, True
    # From the same random numbers, an image is completed to itself; from others, only what is given stays.
    same = draw(model, height=4, width=4, seeds=[5, 6], condition=condition, known=Known(whole.images, mask))
    other = draw(model, height=4, width=4, seeds=[7, 8], condition=condition, known=Known(whole.images, mask))
    assert torch.equal(same.images, whole.images)
    kept = mask[:, None].expand_as(whole.images)
    assert torch.equal(other.images[kept], whole.images[kept])
    assert not torch.equal(other.images, whole.images)
    with torch.no_grad():
        each = model(other.images, condition).log_softmax(4).gather(4, other.images.long()[..., None])[..., 0]
    torch.testing.assert_close(other.nats, -(each * ~kept).flatten(1).sum(1), rtol=0, atol=1e-10)


def test_rows_are_told_as_they_are_drawn() -> None:
    rows: list[int] = []
    draw(build("pixelcnn"), height=3, width=2, seeds=[0], after_row=rows.append)
    assert rows == [1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_arithmetic_is_bfloat16(kind: str) -> None:
    model = build(kind, 2, image_size=4).float()
    condition = condition_for(model, 8)
    with torch.autocast("cpu", torch.bfloat16):
        samples = draw(model, height=4, width=4, seeds=range(8), condition=condition)
    with torch.no_grad():
        nats = nats_of_images(model(samples.images, condition), samples.images)
    assert not torch.equal(samples.nats, nats)
    assert ((samples.nats - nats).abs() < 0.02 * samples.images[0].numel()).all()


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
    image, mask = torch.zeros(1, 1, 3, 3, dtype=torch.uint8), torch.zeros(1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="known images must be of shape"):
        draw(build("pixelcnn", channels=1), height=2, width=2, seeds=[0], known=Known(image, mask))
    with pytest.raises(ValueError, match="got a condition for 1 images and 2 seeds"):
        draw(build("gated-label"), height=2, width=2, seeds=[0, 1], condition=torch.tensor([0]))


def test_drawing_leaves_mode_and_global_random_numbers_alone() -> None:
    model = build("gated-label", dropout=0.3).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(model, height=2, width=2, seeds=[0], condition=torch.tensor([0]))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
