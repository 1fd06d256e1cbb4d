import pytest
import torch

from models.conditioning import Conditioning
from tests.models.builders import KINDS, build, condition_for

CONDITIONAL = [kind for kind in KINDS if "-" in kind and "turned" not in kind]


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_a_dropped_condition_is_the_same_as_none(kind: str) -> None:
    model = build(kind, condition_dropout=0.5).train()
    images = torch.randint(0, 4, (1, 3, 3, 3), dtype=torch.uint8)
    condition = condition_for(model, 1)
    without, given = model(images), model.eval()(images, condition)
    model.train()
    torch.manual_seed(0)
    seen = [model(images, condition) for _ in range(20)]
    dropped = [logits for logits in seen if torch.equal(logits, without)]
    kept = [logits for logits in seen if torch.equal(logits, given)]
    assert len(dropped) + len(kept) == 20
    assert dropped
    assert kept


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_images_are_dropped_apart_at_the_stated_share(kind: str) -> None:
    conditioning = build(kind, condition_dropout=0.3).body.conditioning.train()
    vectors = torch.ones(4000, conditioning.size, dtype=torch.float64)
    torch.manual_seed(0)
    empty = (conditioning(vectors, 3, 3) == 0).flatten(1).all(1)
    assert empty.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not (conditioning.eval()(vectors, 3, 3) == 0).flatten(1).all(1).any()


def test_a_map_differs_from_place_to_place_and_a_vector_does_not() -> None:
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    for kind, varies in (("gated-vector-map", True), ("gated-vector", False)):
        body = build(kind, channels=1, image_size=8).body
        terms = body.layers[0].horizontal_term(body.condition_source(torch.ones(1, 3).double(), *images.shape[2:]))
        assert (terms.flatten(2).std(2, correction=0).max().item() > 0) == varies


def test_an_image_that_was_not_turned_is_as_one_of_which_nothing_is_told() -> None:
    model, plain = build("gated-label-turned"), build("gated-label-turned", condition_dropout=0.5)
    images, labels = torch.randint(0, 4, (3, 3, 3, 3), dtype=torch.uint8), torch.tensor([0, 1, 1])
    told = model(images, labels, torch.tensor([0, 0, 4]))
    assert torch.equal(told[:2], model(images, labels)[:2])
    assert not torch.equal(told[2], model(images, labels)[2])
    assert torch.equal(plain(images, None, torch.tensor([0, 0, 0])), plain(images))


@pytest.mark.parametrize("form", ["vector", "map"])
def test_how_an_image_was_turned_is_never_dropped(form: str) -> None:
    sizes = {"map_filters": 5, "image_size": 3} if form == "map" else {}
    conditioning = Conditioning(size=2, form=form, dropout=0.5, turn_kinds=5, **sizes).double().train()
    h, turn = torch.eye(2).double()[:1], torch.eye(5).double()[2:3]
    torch.manual_seed(0)
    seen = [conditioning(torch.cat([h, turn], 1), 3, 3) for _ in range(20)]
    both, alone = (conditioning.eval()(torch.cat([one, turn], 1), 3, 3) for one in (h, 0.0 * h))
    assert {torch.equal(one, both) for one in seen} == {torch.equal(one, alone) for one in seen} == {False, True}
    assert all(torch.equal(one, both) != torch.equal(one, alone) for one in seen)


def test_a_label_is_a_one_hot_vector() -> None:
    model = build("gated-label")
    images = torch.randint(0, 4, (2, 3, 3, 3), dtype=torch.uint8)
    one_hot = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(model(images, torch.tensor([1, 0])), model(images, one_hot))


def test_conditions_that_do_not_fit_are_refused() -> None:
    images = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="conditioned on 2 numbers, never trained without, got no condition"):
        build("gated-label")(images)
    with pytest.raises(ValueError, match=r"conditioned on 0 numbers got a condition of shape \[1\]"):
        build("gated")(images, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"conditioned on 3 numbers got a condition of shape \[1, 4\]"):
        build("gated-vector")(images, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="made for images of 5 x 5, got 3 x 3"):
        build("gated-vector-map", image_size=5)(images, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="a model that isn't told how images were turned got turns"):
        build("gated")(images, None, torch.tensor([0]))
    with pytest.raises(ValueError, match="dropout in"):
        Conditioning(size=3, dropout=1.0)
