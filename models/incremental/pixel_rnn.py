"""PixelRNN on the row being drawn: what comes from the rows above once a row, the rest a sub-pixel at a time."""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.diagonal_bilstm import DiagonalBiLSTM
from models.incremental.strips import (
    MaskedRow,
    Operation,
    Pixel,
    Strip,
    by_group,
    groups_seen,
    point_products,
    row_products,
    rows_of_group,
)
from models.pixel_rnn import PixelRNN, RecurrentBlock
from models.row_lstm import RowLSTM

GATES = 4


class PixelRNNRow:
    """The first convolution and the recurrent blocks, each output computed once."""

    def __init__(self, body: PixelRNN, like: Float[Tensor, "b c w"]) -> None:
        width, filters, groups = like.shape[2], body.num_features, body.channels
        self._first = MaskedRow(body.first, like, width)
        self.image = self._first.inputs
        self._blocks = [_BlockRow(cast(RecurrentBlock, block), like) for block in body.blocks]
        outputs = Strip(like, width, filters, groups)
        self._strips = [block.inputs for block in self._blocks] + [outputs]
        skips = any(block.skips for block in self._blocks)
        self._skipped = Strip(like, width, filters, groups) if skips else None
        self.features = Strip(like, width, filters, groups) if skips else outputs

    def begin(self, y: int) -> None:
        """Go to row y; the one above is complete."""
        self._first.begin()
        for block in self._blocks:
            block.recurrent.begin(block.inputs, first=y == 0)

    def operations(self, x: int, group: int) -> list[Operation]:
        """What gives the features of a sub-pixel once all before it are in `image`."""
        operations = [self._first.operation(x, group, self._strips[0].group(x, group))]
        if self._skipped is None:
            for block, after in zip(self._blocks, self._strips[1:], strict=True):
                operations += block.operations(x, group, after, None)
            return operations
        operations.append(self._skipped.group(x, group).zero_)
        for block, after in zip(self._blocks, self._strips[1:], strict=True):
            operations += block.operations(x, group, after, self._skipped)
        last, skipped = self._strips[-1].group(x, group), self._skipped.group(x, group)
        return [*operations, partial(torch.add, last, skipped, out=self.features.group(x, group))]


class _BlockRow:
    """An LSTM, and what its hidden state adds to the features and to the skips."""

    def __init__(self, block: RecurrentBlock, like: Float[Tensor, "b c w"]) -> None:
        groups, hidden, wide = block.expand.groups, block.expand.in_filters, block.expand.out_filters
        self._hidden = Pixel(like, hidden, groups)
        self.recurrent = (
            _RowLSTMRow(block.recurrent, like, self._hidden)
            if isinstance(block.recurrent, RowLSTM)
            else _DiagonalRow(block.recurrent, like, self._hidden)
        )
        self.inputs = Strip(like, like.shape[2], wide, groups, self.recurrent.reach)
        self.skips, self._residual = block.skip is not None, block.residual
        self._expand = point_products(block.expand, like)
        self._skip = point_products(block.skip, like) if block.skip is not None else []

    def operations(self, x: int, group: int, outputs: Strip, skipped: Strip | None) -> list[Operation]:
        """The block's outputs of a sub-pixel, and its part of the skips."""
        hidden, out = self._hidden.upto(group + 1), outputs.group(x, group)
        operations = self.recurrent.operations(self.inputs, x, group)
        if self._residual:
            before = self.inputs.group(x, group)
            operations.append(partial(torch.addmm, before, hidden, self._expand[group], out=out))
        else:
            operations.append(partial(torch.mm, hidden, self._expand[group], out=out))
        if skipped is not None and self.skips:
            operations.append(partial(skipped.group(x, group).addmm_, hidden, self._skip[group]))
        return operations


class _RowLSTMRow:
    """A Row LSTM: the state-to-state convolution of the row above, then the input-to-state one with the gates."""

    def __init__(self, layer: RowLSTM, like: Float[Tensor, "b c w"], hidden: Pixel) -> None:
        width, gates, groups = like.shape[2], layer.inputs.current.out_filters, layer.channels
        self.reach, self._current = layer.inputs.reach, layer.inputs.current
        self._products = row_products(layer.inputs, like)
        self._state = layer.state.kernels[0].to(like.dtype)[:, :, None]
        self._bias = layer.inputs.kernel_and_bias()[1].to(like.dtype)
        self._order = by_group(gates, groups, GATES).to(like.device)
        self._base = Strip(like, width, gates, groups)
        self._row = Strip(like, width, gates // GATES, groups)
        self._cells = Strip(_at_least_float32(like), width, gates // GATES, groups)
        self._hidden, self._gates = hidden, _Gates(like, gates // groups)

    def begin(self, inputs: Strip, first: bool) -> None:
        """What the hidden states of the row above give the row."""
        padding = (0, self._state.shape[3] // 2)
        from_above = functional.conv2d(self._row.maps(), self._state, self._bias, padding=padding)
        self._base.maps().copy_(from_above[:, self._order])

    def operations(self, inputs: Strip, x: int, group: int) -> list[Operation]:
        """The hidden state of a sub-pixel, in the row and in `hidden`."""
        window = inputs.window(x, self.reach, groups_seen(self._current, group))
        gates, row = self._gates, self._row.group(x, group)
        return [
            partial(torch.addmm, self._base.group(x, group), window, self._products[group], out=gates.values),
            *gates.operations(self._cells.group(x, group), row),
            partial(self._hidden.group(group).copy_, row),
        ]


class _DiagonalRow:
    """A Diagonal BiLSTM: the scan from the right over the complete row above, the one from the left with the pixels."""

    reach = 0

    def __init__(self, layer: DiagonalBiLSTM, like: Float[Tensor, "b c w"], hidden: Pixel) -> None:
        width, gates, groups = like.shape[2], layer.from_left.out_filters, layer.channels
        filters = gates // GATES
        state = layer.state.matrices().to(like.dtype)
        (self._left_above, left_beside), (self._right_above, self._right_beside) = state[0], state[1]
        orders = [rows_of_group(gates, groups, GATES, group).to(like.device) for group in range(groups)]
        self._beside = [left_beside[:, order].contiguous() for order in orders]
        self._current = point_products(layer.from_left, like, bias=False)
        self._order = torch.cat(orders)
        self._left_bias = layer.from_left.kernel_and_bias()[1].to(like.dtype)
        kernel, self._right_bias = (one.to(like.dtype) for one in layer.from_right.kernel_and_bias())
        self._right_current = kernel[:, :, 0, 0].T.contiguous()
        self._base = Strip(like, width, gates, groups)
        self._row = Strip(like, width, filters, groups, reach=1)
        self._from_right = Strip(like, width, filters, groups)
        self._cells = Strip(_at_least_float32(like), 1, filters, groups)
        self._hidden, self._gates = hidden, _Gates(like, gates // groups)

    def begin(self, inputs: Strip, first: bool) -> None:
        """What both scans bring from the rows above."""
        if not first:
            self._scan_from_right(inputs)
        from_above = self._row.pixels() @ self._left_above + self._left_bias
        self._base.pixels().copy_(from_above[..., self._order])
        self._cells.values.zero_()

    def operations(self, inputs: Strip, x: int, group: int) -> list[Operation]:
        """The hidden state of a sub-pixel, the left one in the row and the sum of both scans in `hidden`."""
        gates, row, beside = self._gates, self._row.group(x, group), self._row.window(x, 1, 0)
        current = inputs.window(x, 0, group + 1)
        return [
            partial(torch.addmm, self._base.group(x, group), beside, self._beside[group], out=gates.values),
            partial(gates.values.addmm_, current, self._current[group]),
            *gates.operations(self._cells.group(0, group), row),
            partial(torch.add, row, self._from_right.group(x, group), out=self._hidden.group(group)),
        ]

    def _scan_from_right(self, inputs: Strip) -> None:
        """Hidden states of the row above from the right, which the row reads one row further down."""
        states = self._from_right.pixels()
        given = inputs.pixels() @ self._right_current + states @ self._right_above + self._right_bias
        gates = _Gates(given[:, 0], given.shape[2])
        cell, beside = self._cells.values.new_zeros(len(given), states.shape[2]), torch.zeros_like(states[:, 0])
        for x in reversed(range(states.shape[1])):
            torch.addmm(given[:, x], beside, self._right_beside, out=gates.values)
            for operation in gates.operations(cell, states[:, x]):
                operation()
            beside = states[:, x]


class _Gates:
    """The gates o, f, i, g of some filters, and how they renew a cell and give the hidden state (Eq. 3)."""

    def __init__(self, like: Float[Tensor, "b *any"], width: int) -> None:
        self.values = like.new_empty(len(like), width)
        self._sigmoids, self._content = self.values.split([width // GATES * 3, width // GATES], 1)
        self._output, self._forget, self._write = self._sigmoids.chunk(3, 1)
        self._squashed = _at_least_float32(like).new_empty(len(like), width // GATES)

    def operations(self, cell: Float[Tensor, "b h"], out: Float[Tensor, "b h"]) -> list[Operation]:
        """From what stands in `values`: the cell in place, the hidden state to `out`."""
        return [
            self._sigmoids.sigmoid_,
            self._content.tanh_,
            partial(cell.mul_, self._forget),
            partial(cell.addcmul_, self._write, self._content),
            partial(torch.tanh, cell, out=self._squashed),
            partial(torch.mul, self._squashed, self._output, out=out),
        ]


def _at_least_float32(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.promote_types(like.dtype, torch.float32))
