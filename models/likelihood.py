"""Log-likelihood of images: nats as the model counts them, bits/dim as papers quote them."""

import math

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def nats_of_subpixels(
    logits: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Negative log-likelihood of each sub-pixel given all before it, in nats: cross entropy in float32 or better.

    The terms of the product of arXiv 1606.05328, Eq. 1; arXiv 1601.06759, Eq. 1 and 2. Under torch.compile it is
    torch's own cross entropy, for the compiler to fuse.
    """
    by_position = logits.permute(0, 2, 3, 1, 4)
    rows, levels = _wide(by_position).flatten(0, 3), images.permute(0, 2, 3, 1).flatten().long()
    nats: Tensor
    if torch.compiler.is_compiling():
        nats = functional.cross_entropy(rows, levels, reduction="none")
    else:
        nats = _CrossEntropy.apply(rows, levels[:, None])
    return nats.view(by_position.shape[:4]).permute(0, 3, 1, 2)


def sum_by_image(nats: Float[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Nats of each image, summed over its sub-pixels in raster order in float64."""
    return nats.permute(0, 2, 3, 1).flatten(1).double().sum(1)


def nats_of_images(logits: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Negative log-likelihood of each image in nats."""
    return sum_by_image(nats_of_subpixels(logits, images))


def lack_of_sureness(
    logits: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """What larger logits of a colour would gain, in nats, and how soon no more: both summed over all its sub-pixels.

    The first is the logit of the true level less the mean of the logits under the prediction, which is the prediction's
    entropy less the nats, and -d nats / d log s for a factor s of the logits; the second their variance under it, -d of
    the first by s. Where the first is 0, a model is as sure as it is right.
    """
    wide = _wide(logits)
    probabilities = wide.softmax(-1)
    mean = (probabilities * wide).sum(-1, keepdim=True)
    variance = (probabilities * (wide - mean).square()).sum(-1)
    gain = (wide.gather(-1, images.long()[..., None]) - mean)[..., 0]
    return gain.double().sum((0, 2, 3)), variance.double().sum((0, 2, 3))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy of rows of logits, whose gradient is made in one map instead of torch's two.

    256 logits for each sub-pixel are the largest map of a training step.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, levels: Tensor) -> Tensor:
        log_probabilities = logits.log_softmax(1)
        ctx.save_for_backward(log_probabilities, levels)
        return -log_probabilities.gather(1, levels)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        log_probabilities, levels = ctx.saved_tensors  # type: ignore[attr-defined]
        by_logits = log_probabilities.exp_().mul_(gradient[:, None])  # a second backward pass is an error for it
        return by_logits.scatter_(1, levels, by_logits.gather(1, levels) - gradient[:, None]), None


def bits_per_dim(nats: float, num_images: int, dims: int) -> float:
    """Bits a sub-pixel from the sum of nats over `num_images` images of `dims` sub-pixels each.

    Raises:
        ValueError: there are no images or no dims.
    """
    if num_images <= 0 or dims <= 0:
        raise ValueError(f"bits/dim needs images and dims above 0, got {num_images} and {dims}")
    return nats / (math.log(2.0) * num_images * dims)
