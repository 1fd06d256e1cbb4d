"""The fused recurrence against an LSTM written pixel by pixel, its gradients, and what torch asks of an operator."""

import itertools

import pytest
import torch
from torch import Tensor

from models.lstm_scan import _scan, _scan_backward, lstm_scan, scan_steps

CASES = [("row", 3, 4, 3), ("row", 1, 5, 3), ("row", 4, 2, 5), ("row", 3, 2, 7), ("row", 3, 1, 3)]
CASES += [("diagonal", 3, 4, 2), ("diagonal", 4, 2, 2), ("diagonal", 1, 3, 2), ("diagonal", 3, 1, 2)]


def arguments(recurrence: str, rows: int, columns: int, taps: int, filters: int = 2) -> tuple[Tensor, Tensor, bool]:
    torch.manual_seed(rows * columns)
    directions = 2 if recurrence == "diagonal" else 1
    inputs = torch.randn(2, rows, columns, directions, 4 * filters, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(directions, taps, filters, 4 * filters, dtype=torch.float64, requires_grad=True)
    return inputs, kernel, recurrence == "diagonal"


def pixel_by_pixel(inputs: Tensor, kernel: Tensor, diagonal: bool) -> Tensor:
    """Eq. 3 for one pixel after another, in raster order; the right direction on the mirrored map."""
    directions = []
    for direction in range(kernel.shape[0]):
        gates = inputs[:, :, :, direction].flip(2) if direction else inputs[:, :, :, direction]
        (rows, columns), (taps, filters) = gates.shape[1:3], kernel.shape[1:3]
        hidden, cells = {}, {}
        for y in range(rows):
            for x in range(columns):
                if diagonal:
                    seen, carried = ((y - 1, x), (y, x - 1)), (y, x - 1)
                else:
                    seen, carried = [(y - 1, x + tap - taps // 2) for tap in range(taps)], (y - 1, x)
                total = gates[:, y, x]
                for tap, place in enumerate(seen):
                    if place in hidden:
                        total = total + hidden[place] @ kernel[direction, tap]
                output, forget, write, content = total.split(filters, dim=1)
                cell = write.sigmoid() * content.tanh()
                if carried in cells:
                    cell = cell + forget.sigmoid() * cells[carried]
                cells[y, x], hidden[y, x] = cell, output.sigmoid() * cell.tanh()
        lines = [torch.stack([hidden[y, x] for x in range(columns)], 1) for y in range(rows)]
        maps = torch.stack(lines, 1)
        directions.append(maps.flip(2) if direction else maps)
    return torch.stack(directions)


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (5, 2), (1, 6), (6, 1), (1, 1), (4, 4)])
def test_diagonals_are_the_columns_of_the_skewed_map(rows: int, columns: int) -> None:
    pixels = torch.arange(rows * columns).view(rows, columns)
    steps = scan_steps(rows, columns, True)
    assert len(steps) == rows + columns - 1
    for direction, seen in enumerate((pixels, pixels.flip(1))):
        skewed = torch.full((rows, rows + columns - 1), -1)
        for row in range(rows):
            skewed[row, row : row + columns] = seen[row]
        for index, step in enumerate(steps):
            column = skewed[:, index]
            assert torch.equal(pixels.flatten()[step.pixels[direction]], column[column >= 0])
            assert (column >= 0).nonzero().flatten().tolist() == list(range(step.first, step.first + step.length))


@pytest.mark.parametrize("diagonal", [False, True])
def test_overlap_pairs_each_position_with_its_neighbour_of_the_step_before(diagonal: bool) -> None:
    steps = scan_steps(3, 5, diagonal)
    for before, step in itertools.pairwise(steps):
        positions = range(step.first, step.first + step.length)
        earlier = range(before.first, before.first + before.length)
        for offset in range(-7, 8):
            here, there = step.overlap(before, offset)
            expected = [position for position in positions if position + offset in earlier]
            assert list(positions[here]) == expected
            assert list(earlier[there]) == [position + offset for position in expected]


@pytest.mark.parametrize(("recurrence", "rows", "columns", "taps"), CASES)
def test_equals_an_lstm_written_pixel_by_pixel(recurrence: str, rows: int, columns: int, taps: int) -> None:
    inputs, kernel, diagonal = arguments(recurrence, rows, columns, taps, filters=3)
    hidden, expected = lstm_scan(inputs, kernel, diagonal), pixel_by_pixel(inputs, kernel, diagonal)
    assert hidden.dtype == torch.float64
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-13)
    weights = torch.randn_like(hidden)
    gradients = torch.autograd.grad((hidden * weights).sum(), (inputs, kernel))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (inputs, kernel), allow_unused=True)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        wanted = torch.zeros_like(gradient) if wanted is None else wanted  # a map of one step reads no kernel
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("recurrence", "rows", "columns", "taps"), [("row", 3, 3, 3), ("diagonal", 3, 2, 2)])
def test_gradients_are_right_by_finite_differences(recurrence: str, rows: int, columns: int, taps: int) -> None:
    inputs, kernel, diagonal = arguments(recurrence, rows, columns, taps, filters=1)
    assert torch.autograd.gradcheck(lambda *tensors: lstm_scan(*tensors, diagonal), (inputs, kernel))


@pytest.mark.parametrize(("recurrence", "rows", "columns", "taps"), [("row", 2, 3, 3), ("diagonal", 2, 3, 2)])
def test_both_operators_keep_the_rules_of_torch(recurrence: str, rows: int, columns: int, taps: int) -> None:
    inputs, kernel, diagonal = arguments(recurrence, rows, columns, taps)
    flat = kernel.detach().flatten(1, 2).requires_grad_()
    torch.library.opcheck(_scan, (inputs, flat, diagonal))
    with torch.no_grad():
        hidden, *saved = _scan(inputs, flat, diagonal)
    torch.library.opcheck(_scan_backward, (hidden, flat.detach(), *saved, rows, diagonal))


@pytest.mark.parametrize("case", [CASES[0], CASES[4]])
def test_any_strides_give_the_same(case: tuple[str, int, int, int]) -> None:
    inputs, kernel, diagonal = arguments(*case)
    planes = inputs.detach().permute(3, 4, 0, 1, 2).contiguous().permute(2, 3, 4, 0, 1)
    assert not planes.is_contiguous()
    torch.testing.assert_close(lstm_scan(planes, kernel, diagonal), lstm_scan(inputs, kernel, diagonal))


@pytest.mark.parametrize("case", [("row", 12, 12, 3), ("diagonal", 12, 12, 2)])
def test_bfloat16_keeps_cells_in_float32_and_stays_near(case: tuple[str, int, int, int]) -> None:
    inputs, kernel, diagonal = arguments(*case, filters=4)
    low = inputs.detach().bfloat16().requires_grad_()
    single = kernel.detach().float().mul(0.3).requires_grad_()
    hidden = lstm_scan(low, single, diagonal)
    exact_inputs, exact_kernel = low.detach().double().requires_grad_(), single.detach().double().requires_grad_()
    exact = lstm_scan(exact_inputs, exact_kernel, diagonal)
    assert hidden.dtype == torch.bfloat16
    assert _scan(low.detach(), single.detach().flatten(1, 2).bfloat16(), diagonal)[2].dtype == torch.float32
    assert (hidden - exact).abs().max() < 0.03
    gradients = torch.autograd.grad(hidden.float().square().sum(), (low, single))
    wanted = torch.autograd.grad(exact.square().sum(), (exact_inputs, exact_kernel))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]
    for gradient, one in zip(gradients, wanted, strict=True):
        assert (gradient - one).norm() < 0.03 * one.norm()
