"""The softmax head on one sub-pixel."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from models.incremental.strips import Operation, Pixel, Strip, point_products
from models.softmax_head import SoftmaxHead


class HeadRow:
    """ReLU, 1x1, ReLU, 1x1 for the colour group that is drawn; the logits come to `logits`."""

    def __init__(self, head: SoftmaxHead, like: Float[Tensor, "b c w"]) -> None:
        groups = head.channels
        self.logits = like.new_empty(len(like), head.levels)
        self._features = Pixel(like, head.hidden.in_filters, groups)
        self._hidden = Pixel(like, head.hidden.out_filters, groups)
        self._to_hidden, self._to_logits = point_products(head.hidden, like), point_products(head.logits, like)

    def operations(self, features: Strip, x: int, group: int) -> list[Operation]:
        """From the features of a sub-pixel to the logits of its levels."""
        rectified, hidden = self._features.group(group), self._hidden.group(group)
        return [
            partial(torch.clamp_min, features.group(x, group), 0, out=rectified),
            partial(torch.mm, self._features.upto(group + 1), self._to_hidden[group], out=hidden),
            partial(hidden.clamp_min_, 0),
            partial(torch.mm, self._hidden.upto(group + 1), self._to_logits[group], out=self.logits),
        ]
