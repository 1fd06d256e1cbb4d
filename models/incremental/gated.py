"""Gated PixelCNN on the row being drawn: the vertical stack once a row, the horizontal one a sub-pixel at a time."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.causal_conv import pointwise
from models.conditioning import condition_term
from models.gated_pixelcnn import GatedLayer, GatedPixelCNN
from models.incremental.strips import (
    Operation,
    Pixel,
    RowsAbove,
    Strip,
    by_group,
    groups_seen,
    point_products,
    row_products,
)


class GatedRow:
    """Fig. 2 of the paper with every layer's output of every sub-pixel computed once."""

    def __init__(
        self, body: GatedPixelCNN, vectors: Float[Tensor, "b d"] | None, height: int, like: Float[Tensor, "b c w"]
    ) -> None:
        width = like.shape[2]
        source = body.condition_source(vectors, height, width)
        self._source = None if source is None else source.to(like.dtype)
        self._layers = [_LayerRow(layer, like) for layer in body.gated_layers]
        outputs = Strip(like, width, body.num_features, body.channels)
        strips = [layer.inputs for layer in self._layers] + [outputs]
        self.image, self.features = strips[0], strips[-1]
        for layer, after in zip(self._layers, strips[1:], strict=True):
            layer.outputs = after

    def begin(self, y: int) -> None:
        """Go to row y; the one above is complete."""
        vertical = self.image.maps() if y else None
        for layer in self._layers:
            vertical = layer.begin(vertical, self._of_row(y - 1), self._of_row(y))

    def operations(self, x: int, group: int) -> list[Operation]:
        """What gives the features of a sub-pixel once all before it are in `image`."""
        return [operation for layer in self._layers for operation in layer.operations(x, group)]

    def _of_row(self, y: int) -> Float[Tensor, "b s 1 #w"] | None:
        if self._source is None or self._source.shape[2] == 1:
            return self._source
        return self._source[:, :, max(y, 0) : max(y, 0) + 1]


class _LayerRow:
    """One layer. The gate's sigmoid(b) is computed as (1 + tanh(b / 2)) / 2, so that one tanh serves both halves."""

    outputs: Strip

    def __init__(self, layer: GatedLayer, like: Float[Tensor, "b c w"]) -> None:
        groups, current = layer.channels, layer.horizontal.current
        width, pre_activations = like.shape[2], current.out_filters
        half = pre_activations // groups // 2
        self._layer, self._groups, self._reach, self._residual = layer, groups, layer.horizontal.reach, layer.residual
        self.inputs = Strip(like, width, current.in_filters, groups, self._reach)
        self._rows = RowsAbove(like, layer.vertical.rows, width, current.in_filters)
        self._order = by_group(pre_activations, groups, parts=2).to(like.device)
        scale = like.new_ones(pre_activations)
        scale.view(groups, 2, half)[:, 1] = 0.5
        self._scale = scale
        self._bias = layer.horizontal.kernel_and_bias()[1].to(like.dtype)[:, None, None]
        self._base = Strip(like, width, pre_activations, groups)
        self._row_products = [product * scale[: 2 * half] for product in row_products(layer.horizontal, like)]
        self._point_products = point_products(layer.output, like)
        for product in self._point_products:
            product[1:] *= 0.5
        self._before = like.new_empty(len(like), 2 * half)
        self._halves = self._before.split(half, 1)
        self._gated = Pixel(like, half * groups, groups)

    def begin(
        self,
        vertical: Float[Tensor, "b i 1 w"] | None,
        source_above: Float[Tensor, "b s 1 #w"] | None,
        source: Float[Tensor, "b s 1 #w"] | None,
    ) -> Float[Tensor, "b v 1 w"] | None:
        """What the link, the condition and the bias give the row; and the vertical stack's output of the row above."""
        layer, total = self._layer, self._bias
        if vertical is not None:
            conv = layer.vertical.conv
            assert conv.bias is not None
            weight, bias = conv.weight.to(vertical.dtype), conv.bias.to(vertical.dtype)
            above = functional.conv2d(self._rows.append(vertical), weight, bias, padding=(0, self._reach))
            total = total + pointwise(above, layer.link.weight.to(above.dtype))
            vertical = None if layer.last else layer.gate_vertical(above, source_above)
        term = condition_term(layer.horizontal_term, source)
        total = total if term is None else total + term
        self._base.maps().copy_(total.expand_as(self._base.maps())[:, self._order] * self._scale[:, None, None])
        return vertical

    def operations(self, x: int, group: int) -> list[Operation]:
        """The layer's outputs of a sub-pixel."""
        content, control = self._halves
        window = self.inputs.window(x, self._reach, groups_seen(self._layer.horizontal.current, group))
        product, gated, out = self._point_products[group], self._gated.upto(group + 1), self.outputs.group(x, group)
        return [
            partial(torch.addmm, self._base.group(x, group), window, self._row_products[group], out=self._before),
            self._before.tanh_,
            partial(torch.addcmul, content, content, control, out=self._gated.group(group)),
            partial(torch.addmm, self.inputs.group(x, group), gated, product, out=out)
            if self._residual
            else partial(torch.mm, gated, product, out=out),
        ]
