"""Muon: the momentum of a matrix of weights, made orthogonal, is the direction in which it goes.

Source: K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024. A change of a matrix of o
outputs and i inputs has a spectral norm of about lr sqrt(o/i), so that outputs of any layer change by the same share of
their size, whatever its width (G. Yang, J. Simon, J. Bernstein, A Spectral Condition for Feature Learning, arXiv
2310.17813, Condition 1). `torch.optim.Muon` is the same for single matrices of no fewer outputs than inputs; here are
kernels, too, and matrices of one shape go through the iteration together, in far fewer launches on a GPU.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration: singular values of a share of 1e-3 and more come between 0.7 and 1.2 in five turns."""


def orthogonalized(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Nearly the nearest matrices with orthonormal rows or columns, whichever are fewer, in bfloat16 on a GPU."""
    rows, columns = matrices.shape[1:]
    wide = matrices if rows <= columns else matrices.mT
    if matrices.device.type == "cuda":
        wide = wide.bfloat16()
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        products = wide @ wide.mT
        polynomial = torch.baddbmm(products, products, products, beta=CUBIC, alpha=QUINTIC)
        wide = torch.baddbmm(wide, polynomial, wide, beta=LINEAR)
    return wide if rows <= columns else wide.mT


class AdamWWithMuon(torch.optim.AdamW):
    """AdamW for one group of parameters, and Muon with Nesterov's momentum for a second one of matrices and kernels.

    A kernel of o outputs counts as a matrix of o rows. The groups are told apart by their key "muon".

    Args:
        matrices: parameters of two dimensions or more, their outputs first.
        others: all other parameters.
        weight_decay: of the matrices if there are any, else of all; decoupled, a share of lr.
        options: AdamW's own; its lr is the second group's, too, until it is set.
    """

    def __init__(
        self, matrices: Iterable[Tensor], others: Iterable[Tensor], *, weight_decay: float = 0.0, **options: Any
    ) -> None:
        turned: dict[str, Any] = {"params": list(matrices), "muon": True, "weight_decay": weight_decay}
        rest = {"params": list(others), "muon": False, "weight_decay": 0.0 if turned["params"] else weight_decay}
        super().__init__([rest, turned], **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; the matrices' gradients are gone after it."""
        for group in self.param_groups:
            matrices = [one for one in group["params"] if group["muon"] and one.grad is not None]
            if matrices:
                self._step_matrices(matrices, group)
        super().step()

    def _step_matrices(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self._momentum(matrix) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1.0 - MOMENTUM)
        directions = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, matrix in enumerate(matrices):
            by_shape[matrix.shape].append(index)
            matrix.grad = None  # so that AdamW passes it over
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1.0 - group["lr"] * group["weight_decay"])
        for shape, indices in by_shape.items():
            # Inputs last, as channels_last kernels lie in memory; the order of columns doesn't matter.
            stacked = torch.stack([directions[index].movedim(1, -1) for index in indices])
            changes = orthogonalized(stacked.flatten(2)).to(stacked.dtype).view_as(stacked)
            scale = math.sqrt(shape[0] / math.prod(shape[1:]))
            torch._foreach_add_(
                [matrices[index] for index in indices],
                [change.movedim(-1, 1) for change in changes.unbind()],
                alpha=-group["lr"] * scale,
            )

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:  # AdamW loads no state without a step
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(matrix)}
        momentum: Tensor = state["momentum"]
        return momentum
