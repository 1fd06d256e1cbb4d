"""The recurrence of Row LSTM and Diagonal BiLSTM: one autograd node for all rows or diagonals of a map.

A step is a row or a diagonal, all of whose positions, images and directions are computed at once. It reads the step
before through `taps` neighbouring positions: -1, 0, +1 for a row (kernel 3), and for a diagonal, whose positions are
counted by rows, -1 and 0: the pixel above and the pixel beside. The skewed map is never made: a diagonal is a strided
slice of the map's pixels in raster order, so that its padding costs neither time nor memory.
Source: van den Oord et al., arXiv 1601.06759, sections 3.1 and 3.2, Eq. 3.
"""

import math
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

OPERATOR = f"pixelcnn_ray::{__name__.replace('.', '_')}"
"""Name of the scan for torch, of this module alone: a registered model brings a copy of it, and torch would free an
operator whose name is taken by another, under those who call it.
"""


class StateToState(nn.Module):
    """The state-to-state convolution, without a mask: hidden states of the step before to all four gates.

    Parameters: 4h^2 `taps` for each direction, outputs first as in any convolution.
    """

    def __init__(self, num_filters: int, taps: int, directions: int) -> None:
        super().__init__()
        shape = (4 * num_filters, num_filters, taps)
        self.kernels = nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(directions))
        bound = 1 / math.sqrt(taps * num_filters)
        for kernel in self.kernels:
            nn.init.uniform_(kernel, -bound, bound)

    def matrices(self) -> Float[Tensor, "d taps h gates"]:
        """One matrix for each tap and direction, as `lstm_scan` takes them."""
        return torch.stack([kernel.permute(2, 1, 0) for kernel in self.kernels])

    def flops(self, height: int, width: int) -> int:
        """Floating-point operations an image: 2 x 4h^2 `taps` for each direction at each position."""
        return 2 * sum(kernel.numel() for kernel in self.kernels) * height * width


class Step(NamedTuple):
    """A row or a diagonal: its positions are first .. first + length - 1; `pixels` has a slice for each direction."""

    first: int
    length: int
    pixels: tuple[slice, ...]

    def overlap(self, before: "Step", offset: int) -> tuple[slice, slice]:
        """This step's positions p for which p + offset exists in the step before, and those of the step before."""
        first = max(self.first, before.first - offset)
        last = max(first, min(self.first + self.length, before.first + before.length - offset))
        shift = offset - before.first
        return slice(first - self.first, last - self.first), slice(first + shift, last + shift)


@lru_cache(maxsize=64)
def scan_steps(rows: int, columns: int, diagonal: bool) -> tuple[Step, ...]:
    """The rows of a map; or its diagonals from the left, and in the mirrored map from the right, as directions."""
    if not diagonal:
        return tuple(Step(0, columns, (slice(row * columns, (row + 1) * columns),)) for row in range(rows))
    steps = []
    for index in range(rows + columns - 1):
        first = max(0, index - columns + 1)
        length = min(rows, index + 1) - first
        pixels = []
        for start, stride in ((index, columns - 1), (columns - 1 - index, columns + 1)):
            begin = start + first * stride
            pixels.append(slice(begin, begin + (length - 1) * stride + 1, max(1, stride)))
        steps.append(Step(first, length, tuple(pixels)))
    return tuple(steps)


def lstm_scan(
    inputs: Float[Tensor, "b r c d gates"], kernel: Float[Tensor, "d taps h gates"], diagonal: bool
) -> Float[Tensor, "d b r c h"]:
    """Hidden states h of each position and direction, zero outside the map; differentiable once.

    Args:
        inputs: what the input-to-state convolution gives the gates o, f, i, g (in this order, h of each), in the dtype
            of the result; cells are kept in at least float32.
        kernel: the state-to-state convolution, one matrix for each tap and direction.
        diagonal: scan the diagonals, in directions from the left and from the right, instead of the rows.
    """
    hidden: Tensor = _scan(inputs, kernel.flatten(1, 2).to(inputs.dtype), diagonal)[0]
    return hidden.unflatten(2, inputs.shape[1:3])


def _tap_offsets(kernel: Tensor, diagonal: bool) -> range:
    taps = kernel.shape[1] * 4 // kernel.shape[2]
    return range(-1, 1) if diagonal else range(-(taps // 2), taps // 2 + 1)


def _positions(steps: tuple[Step, ...]) -> list[slice]:
    """Where each step stands in the saved maps, which hold the pixels step after step."""
    ends = list(accumulate(step.length for step in steps))
    return [slice(end - step.length, end) for end, step in zip(ends, steps, strict=True)]


def _empty_results(inputs: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, rows, columns, directions, width = inputs.shape
    filters, pixels = width // 4, rows * columns
    hidden = inputs.new_empty(directions, images, pixels, filters)
    gates = inputs.new_empty(directions, pixels, images, width)
    cell_dtype = torch.promote_types(inputs.dtype, torch.float32)
    cells = inputs.new_empty(directions, pixels, images, filters, dtype=cell_dtype)
    seen = inputs.new_empty(directions, pixels, images, kernel.shape[1])
    return hidden, gates, cells, seen


@torch.library.custom_op(OPERATOR, mutates_args=())
def _scan(inputs: Tensor, kernel: Tensor, diagonal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states in raster order; and for backward, step after step, gates, cells and the hidden states read.

    The hidden states that a position reads through all taps stand side by side, so that a step is one product.
    """
    hidden, gates, cells, seen = _empty_results(inputs, kernel)
    filters = cells.shape[3]
    pixels = inputs.flatten(1, 2)
    steps = scan_steps(*inputs.shape[1:3], diagonal)
    places = _positions(steps)
    state = cells
    for index, step in enumerate(steps):
        gate, cell, read = (saved[:, places[index]] for saved in (gates, cells, seen))
        read.zero_()  # for the positions at the border, and the first step, that have nothing before them
        if index:
            for target, offset in zip(read.split(filters, 3), _tap_offsets(kernel, diagonal), strict=True):
                here, there = step.overlap(steps[index - 1], offset)
                target[:, here] = state[:, there]
        torch.bmm(read.flatten(1, 2), kernel, out=gate.flatten(1, 2))
        for direction, part in enumerate(step.pixels):
            gate[direction].add_(pixels[:, part, direction].transpose(0, 1))
        gate[..., : 3 * filters].sigmoid_()
        gate[..., 3 * filters :].tanh_()
        output, forget, write, content = gate.split(filters, 3)
        cell.copy_(write).mul_(content)
        if index:
            here, there = step.overlap(steps[index - 1], 0)
            cell[:, here].addcmul_(forget[:, here], cells[:, places[index - 1]][:, there])
        state = cell.tanh().mul_(output)
        for direction, part in enumerate(step.pixels):
            hidden[direction, :, part] = state[direction].transpose(0, 1)
    return hidden, gates, cells, seen


@_scan.register_fake
def _(inputs: Tensor, kernel: Tensor, diagonal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_results(inputs, kernel)


@torch.library.custom_op(f"{OPERATOR}_backward", mutates_args=())
def _scan_backward(
    grad_hidden: Tensor, kernel: Tensor, gates: Tensor, cells: Tensor, seen: Tensor, rows: int, diagonal: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the scan's inputs and kernel, by backpropagation from the last step to the first."""
    directions, pixels, images, width = gates.shape
    filters = width // 4
    columns = pixels // rows
    grad_inputs = gates.new_empty(images, pixels, directions, width)
    grad_kernel = torch.zeros_like(kernel, dtype=cells.dtype)
    steps = scan_steps(rows, columns, diagonal)
    places = _positions(steps)
    grad_state = cells.new_zeros(directions, steps[-1].length, images, filters)
    grad_cell = torch.zeros_like(grad_state)
    for index in reversed(range(len(steps))):
        step = steps[index]
        gate, cell, read = (saved[:, places[index]] for saved in (gates, cells, seen))
        output, forget, write, content = gate.split(filters, 3)
        for direction, part in enumerate(step.pixels):
            grad_state[direction].add_(grad_hidden[direction, :, part].transpose(0, 1))
        squashed = cell.tanh()
        grad_gate = torch.empty_like(gate)
        grad_output, grad_forget, grad_write, grad_content = grad_gate.split(filters, 3)
        torch.mul(grad_state, squashed, out=grad_output)
        grad_cell.add_(torch.ops.aten.tanh_backward(grad_state.mul_(output), squashed))
        torch.mul(grad_cell, content, out=grad_write)
        torch.mul(grad_cell, write, out=grad_content)
        grad_forget.zero_()
        if index:
            here, there = step.overlap(steps[index - 1], 0)
            torch.mul(grad_cell[:, here], cells[:, places[index - 1]][:, there], out=grad_forget[:, here])
        grad_sigmoids, sigmoids = grad_gate[..., : 3 * filters], gate[..., : 3 * filters]
        torch.ops.aten.sigmoid_backward(grad_sigmoids, sigmoids, grad_input=grad_sigmoids)
        torch.ops.aten.tanh_backward(grad_content, content, grad_input=grad_content)
        for direction, part in enumerate(step.pixels):
            grad_inputs[:, part, direction] = grad_gate[direction].transpose(0, 1)
        if index:
            before, flat = steps[index - 1], grad_gate.flatten(1, 2)
            grad_kernel += torch.bmm(read.flatten(1, 2).mT, flat)
            carried = grad_cell[:, here] * forget[:, here]
            grad_state = cells.new_zeros(directions, before.length, images, filters)
            grad_cell = torch.zeros_like(grad_state)
            grad_cell[:, there] = carried
            grad_read = torch.bmm(flat, kernel.mT).unflatten(1, (step.length, images))
            for part, offset in zip(grad_read.split(filters, 3), _tap_offsets(kernel, diagonal), strict=True):
                here, there = step.overlap(before, offset)
                grad_state[:, there].add_(part[:, here])
    return grad_inputs.unflatten(1, (rows, columns)), grad_kernel.to(kernel.dtype)


@_scan_backward.register_fake
def _(
    grad_hidden: Tensor,
    kernel: Tensor,
    gates: Tensor,
    cells: Tensor,
    seen: Tensor,
    rows: int | torch.SymInt,
    diagonal: bool,
) -> tuple[Tensor, Tensor]:
    directions, pixels, images, width = gates.shape
    return gates.new_empty(images, rows, pixels // rows, directions, width), torch.empty_like(kernel)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: tuple[Tensor, ...]) -> None:
    maps, kernel, diagonal = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros would be made for the saved maps, whose gradients nothing reads
    ctx.save_for_backward(kernel, *output[1:])
    ctx.rows, ctx.diagonal = maps.shape[1], diagonal


def _backward(ctx: Any, grad_hidden: Tensor | None, *unused: None) -> tuple[Tensor | None, Tensor | None, None]:
    if grad_hidden is None:
        return None, None, None
    return *_scan_backward(grad_hidden, *ctx.saved_tensors, ctx.rows, ctx.diagonal), None


_scan.register_autograd(_backward, setup_context=_save_for_backward)
