"""The paper's head: a softmax over every level of every sub-pixel (arXiv 1601.06759, section 3.6)."""

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.causal_conv import SCALE_RATE, GroupedPointwise
from models.likelihood import nats_of_subpixels


class SoftmaxHead(nn.Module):
    """Logits of every sub-pixel's levels: ReLU, 1x1, ReLU, 1x1, each 1x1 block-triangular over the colours.

    It stands on any body whose features come in colour groups. Parameters, with p features, q head filters, C colours
    and L levels: (p q + q C L) (C+1)/(2C) + q + C L. A softmax that is sure of a level of 256 needs logits in the
    hundreds (docs/experiments.md); `logit_scale` multiplies them, so that small weights reach that in fewer steps.
    With `trained_logit_scale` a factor of each colour, C parameters more, is trained besides: while the learning rate
    falls, predictions get better faster than their logits grow, and a model that is less sure than right draws noise.

    Raises:
        ValueError: levels or head_filters don't fit, or logit_scale is not above 0.
    """

    def __init__(
        self,
        *,
        num_features: int,
        head_filters: int,
        channels: int,
        levels: int,
        logit_scale: float = 1.0,
        trained_logit_scale: bool = False,
    ) -> None:
        super().__init__()
        if not logit_scale > 0.0:
            raise ValueError(f"logit_scale must be above 0, got {logit_scale}")
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be 2 to 256, got {levels}")
        if head_filters % channels:
            raise ValueError(f"head_filters must be a multiple of the {channels} colour groups, got {head_filters}")
        self.channels, self.levels = channels, levels
        self.hidden = GroupedPointwise(num_features, head_filters, channels, "B")
        self.logits = GroupedPointwise(
            head_filters, channels * levels, channels, "B", scale=logit_scale, trained_scale=trained_logit_scale
        )

    def forward(self, features: Float[Tensor, "b f h w"]) -> Float[Tensor, "b c h w levels"]:
        logits: Tensor = self.logits(self.hidden(features.relu()).relu_())
        return logits.unflatten(1, (self.channels, self.levels)).permute(0, 1, 3, 4, 2)

    def nats(
        self, logits: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Negative log-likelihood of each sub-pixel given all before it, in nats."""
        return nats_of_subpixels(logits, images)

    def make_surer(self, by: Float[Tensor, " c"]) -> None:
        """Multiply the trained factor of each colour's logits by the exponential of a number."""
        assert self.logits.log_scale is not None
        self.logits.log_scale.data += by.to(self.logits.log_scale) / SCALE_RATE

    def flops(self, height: int, width: int) -> int:
        """2 (p q + q C L) (C+1)/(2C) at each position, forward, an image."""
        return self.hidden.flops(height, width) + self.logits.flops(height, width)
