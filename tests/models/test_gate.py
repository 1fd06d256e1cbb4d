"""The fused gate against the sum, shift and product that it stands for."""

import pytest
import torch
from torch.nn import functional

from models.gate import gate


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [None, (1, 1), (4, 5)], ids=["no term", "one term an image", "a term a position"])
def test_gate_and_its_gradients_equal_the_formula(shift: bool, size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    features, linked = (torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    term = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True) if size else None
    total = features if term is None else features + term
    if shift:
        total = total + functional.pad(linked, (0, 0, 1, -1))
    expected = total[:, :3].tanh() * total[:, 3:].sigmoid()
    gated = gate(features, linked if shift else None, term)
    inputs = [features, *([linked] if shift else []), *([term] if term is not None else [])]
    weight = torch.randn_like(expected)
    torch.testing.assert_close(gated, expected, rtol=0, atol=1e-14)
    for ours, plain in zip(
        torch.autograd.grad(gated, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-14)


def test_a_second_derivative_is_refused() -> None:
    features = torch.randn(1, 2, 2, 2, requires_grad=True)
    weight = torch.ones(1, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad((gate(features) * weight).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
