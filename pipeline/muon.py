"""Muon: the momentum of a matrix of weights, made orthogonal, is the direction in which it goes.

Source: K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024. A change of a matrix of o
outputs and i inputs has a spectral norm of about lr sqrt(o/i), so that outputs of any layer change by the same share of
their size, whatever its width (G. Yang, J. Simon, J. Bernstein, A Spectral Condition for Feature Learning, arXiv
2310.17813, Condition 1). `torch.optim.Muon` is the same for single matrices of no fewer outputs than inputs; here are
kernels, too, and matrices of similar shapes go through the iteration together, in far fewer launches on a GPU.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration: singular values of a share of 1e-3 and more come between 0.7 and 1.2 in five turns."""

ZEROS = 0.05
"""Share of the iteration's operations that may go into zeros, with which matrices are padded to go together."""


@dataclass(frozen=True)
class Together:
    """Matrices that go through the iteration as one batch of rows <= columns, those of few rows and columns padded."""

    rows: int
    columns: int
    shapes: dict[tuple[int, ...], list[int]]
    """The places of the matrices and kernels of each shape."""

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(len(places) for places in self.shapes.values())

    @property
    def operations(self) -> int:
        """Multiplications and additions of a turn."""
        return 2 * self.count * self.rows**2 * (2 * self.columns + self.rows)

    def joined(self, other: "Together") -> "Together":
        """Both as one batch."""
        rows, columns = max(self.rows, other.rows), max(self.columns, other.columns)
        return Together(rows, columns, self.shapes | other.shapes)

    def operations_added(self, other: "Together") -> int:
        """Operations of a turn that both as one batch take more than they do apart."""
        return self.joined(other).operations - self.operations - other.operations


@functools.lru_cache(maxsize=8)
def batches(shapes: tuple[tuple[int, ...], ...]) -> list[Together]:
    """As few batches as ZEROS allows: of all pairs, the one that adds the fewest operations becomes one, and again."""
    places = defaultdict[tuple[int, ...], list[int]](list)
    for place, shape in enumerate(shapes):
        places[shape].append(place)
    found = []
    for shape, same in places.items():
        rows, columns = sorted((shape[0], math.prod(shape[1:])))
        found.append(Together(rows, columns, {shape: same}))
    allowed = (1.0 + ZEROS) * sum(one.operations for one in found)
    while len(found) > 1:
        one, other = min(itertools.combinations(found, 2), key=lambda pair: pair[0].operations_added(pair[1]))
        left = [batch for batch in found if batch not in (one, other)]
        if sum(batch.operations for batch in [*left, one.joined(other)]) > allowed:
            break
        found = [*left, one.joined(other)]
    return found


def orthogonalized(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Nearly the nearest matrices with orthonormal rows or columns, whichever are fewer, in bfloat16 on a GPU."""
    wide = _no_taller(matrices)
    if matrices.device.type == "cuda":
        wide = wide.bfloat16()
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        products = wide @ wide.mT
        polynomial = torch.baddbmm(products, products, products, beta=CUBIC, alpha=QUINTIC)
        wide = torch.baddbmm(wide, polynomial, wide, beta=LINEAR)
    return wide if wide.shape == matrices.shape else wide.mT


def orthogonalized_together(batch: Together, directions: list[Tensor]) -> list[list[Tensor]]:
    """The batch's directions after the iteration, shape by shape, each in its own order of memory."""
    # Inputs last, as channels_last kernels lie in memory; the order of columns doesn't matter.
    lists = [[directions[place].movedim(1, -1) for place in places] for places in batch.shapes.values()]
    stacks = [torch.stack(same).contiguous() for same in lists]  # so that what is written to `wide` is in them
    wide = [_no_taller(stack.flatten(2)) for stack in stacks]
    padded = directions[0].new_zeros(batch.count, batch.rows, batch.columns)
    for part, matrices in zip(_corners(padded, wide), wide, strict=True):
        part.copy_(matrices)
    for part, matrices in zip(_corners(orthogonalized(padded), wide), wide, strict=True):
        matrices.copy_(part)
    return [[one.movedim(-1, 1) for one in stack.unbind()] for stack in stacks]


def _no_taller(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n fewer more"]:
    """The same matrices, lying on their side if they have more rows than columns."""
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT


def _corners(padded: Float[Tensor, "n rows columns"], stacks: list[Tensor]) -> list[Tensor]:
    """The parts of padded matrices in which those of the stacks lie, one stack after the other."""
    parts = padded.split([len(stack) for stack in stacks])
    return [part[:, : stack.shape[1], : stack.shape[2]] for part, stack in zip(parts, stacks, strict=True)]


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
        directions = list(torch._foreach_lerp(gradients, momenta, MOMENTUM))
        for matrix in matrices:
            matrix.grad = None  # so that AdamW passes it over
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1.0 - group["lr"] * group["weight_decay"])
        for batch in batches(tuple(tuple(matrix.shape) for matrix in matrices)):
            changes = orthogonalized_together(batch, directions)
            for (shape, places), change in zip(batch.shapes.items(), changes, strict=True):
                scale = math.sqrt(shape[0] / math.prod(shape[1:]))
                torch._foreach_add_([matrices[place] for place in places], change, alpha=-group["lr"] * scale)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:  # AdamW loads no state without a step
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(matrix)}
        momentum: Tensor = state["momentum"]
        return momentum
