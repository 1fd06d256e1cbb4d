import itertools

import pytest
import torch

from models.encoder import ConvEncoder
from models.portrait_embedding import PortraitEmbedding, triplet_losses


def by_hand(embeddings: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """The definition, triplet by triplet."""
    losses = torch.zeros(len(labels), dtype=embeddings.dtype)
    for anchor in range(len(labels)):
        hinges = []
        negatives = [n for n in range(len(labels)) if labels[n] != labels[anchor]]
        distance = [((embeddings[anchor] - one) ** 2).mean().item() for one in embeddings]
        for positive in range(len(labels)):
            if positive == anchor or labels[positive] != labels[anchor] or not negatives:
                continue
            farther = [distance[n] for n in negatives if distance[n] > distance[positive]]
            chosen = min(farther) if farther else max(distance[n] for n in negatives)
            hinges.append(max(0.0, distance[positive] - chosen + margin))
        losses[anchor] = sum(hinges) / len(hinges) if hinges else 0.0
    return losses


@pytest.mark.parametrize("people", [1, 2, 3, 12])
def test_losses_equal_the_definition(people: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        embeddings, labels = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, people, (12,))
        losses = triplet_losses(embeddings, labels, 0.7)
        torch.testing.assert_close(losses, by_hand(embeddings, labels, 0.7))


@pytest.mark.parametrize("channels", [1, 3])
def test_training_brings_a_person_together_and_apart_from_others(channels: int) -> None:
    torch.manual_seed(0)
    faces = torch.rand(4, channels, 8, 8)
    images = torch.cat([(faces + 0.2 * torch.rand_like(faces)).clamp(0, 1) for _ in range(6)])
    images, labels = (images * 255).to(torch.uint8), torch.arange(4).repeat(6)
    encoder = ConvEncoder(channels=channels, levels=256, image_size=8, num_filters=8, code_size=16, activation="relu")
    model = PortraitEmbedding(encoder=encoder)
    torch.testing.assert_close(model(images).square().mean(1), torch.ones(24))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model.losses(model(images), images, labels)
        losses.mean().backward()
        optimizer.step()
    points = model(images)
    distances = (points[:, None] - points[None]).square().mean(2)
    pairs = list(itertools.combinations(range(24), 2))
    same = max(distances[i, j].item() for i, j in pairs if labels[i] == labels[j])
    other = min(distances[i, j].item() for i, j in pairs if labels[i] != labels[j])
    assert same < other
    assert losses.sum().item() == 0.0


def test_a_margin_of_zero_is_refused() -> None:
    encoder = ConvEncoder(channels=1, levels=2, image_size=8, num_filters=2, code_size=2, activation="relu")
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        PortraitEmbedding(encoder=encoder, margin=0.0)


@pytest.mark.usefixtures("shapes_unchecked")
def test_gradients_are_finite_where_a_compiler_rounds_once_more() -> None:
    """Inductor computes the distances again for the backward pass, in bfloat16 with other rounding."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    linear, labels = torch.nn.Linear(8, 4), torch.arange(12) % 4
    points = torch.randn(12, 8)

    def losses() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = torch.nn.functional.normalize(linear(points), dim=1)
        return triplet_losses(embeddings.float(), labels, 0.7)

    expected = torch.autograd.grad(losses().sum(), linear.weight)[0]
    (compiled,) = torch.autograd.grad(torch.compile(losses)().sum(), linear.weight)
    assert (compiled - expected).norm() < 0.1 * expected.norm()
