"""The gated activation unit of the Gated PixelCNN (van den Oord et al., arXiv 1606.05328, Eq. 2), as one autograd node.

Written with torch's own operations, each of which leaves a map of its own, the gate and what is added before it take
twice the memory traffic: that is what bounds them on a CPU (docs/experiments.md).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def gate(
    features: Float[Tensor, "b f2 h w"],
    linked: Float[Tensor, "b f2 h w"] | None = None,
    term: Float[Tensor, "b f2 #h #w"] | None = None,
) -> Float[Tensor, "b f h w"]:
    """tanh(first half) * sigmoid(second half) of the features' sum with `term` and with `linked` one row further down.

    Each half holds the colour groups in their order, so that no colour's features meet another's gate. Differentiable
    once; under torch.compile it is plain operations, for the compiler to fuse.
    """
    if not torch.compiler.is_compiling():
        gated: Tensor = _Gate.apply(features, linked, term)
        return gated
    if linked is not None:
        features = features + functional.pad(linked, (0, 0, 1, 0))[:, :, :-1]
    content, control = (features if term is None else features + term).chunk(2, dim=1)
    return content.tanh() * control.sigmoid()


class _Gate(torch.autograd.Function):
    """The same in two maps: activations, kept for the backward pass, and their product."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, linked: Tensor | None, term: Tensor | None) -> Tensor:
        activations = torch.empty_like(features)
        total = features if linked is None and term is None else activations
        if linked is not None:
            activations[:, :, :1] = features[:, :, :1]
            torch.add(features[:, :, 1:], linked[:, :, :-1], out=activations[:, :, 1:])
        if term is not None:
            torch.add(features if linked is None else activations, term, out=activations)
        (content, control), (content_before, control_before) = activations.chunk(2, dim=1), total.chunk(2, dim=1)
        ctx.save_for_backward(activations)
        ctx.linked, ctx.term = linked is not None, None if term is None else term.shape  # type: ignore[attr-defined]
        return torch.tanh(content_before, out=content) * torch.sigmoid(control_before, out=control)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        (activations,) = ctx.saved_tensors  # type: ignore[attr-defined]
        features, linked, term = torch.empty_like(activations), None, None
        (content, control), (by_content, by_control) = activations.chunk(2, dim=1), features.chunk(2, dim=1)
        torch.mul(gradient, control, out=by_content)
        torch.mul(gradient, content, out=by_control)
        torch.ops.aten.tanh_backward.grad_input(by_content, content, grad_input=by_content)
        torch.ops.aten.sigmoid_backward.grad_input(by_control, control, grad_input=by_control)
        if ctx.linked:  # type: ignore[attr-defined]
            linked = torch.empty_like(features)
            linked[:, :, :-1] = features[:, :, 1:]
            linked[:, :, -1:] = 0
        if ctx.term is not None:  # type: ignore[attr-defined]
            term = features.sum_to_size(ctx.term)  # type: ignore[attr-defined]
        return features, linked, term
