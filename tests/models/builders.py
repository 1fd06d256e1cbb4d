"""Small models of every kind in float64, whose every parameter is away from zero."""

from typing import Any

import torch

from models.autoregressive import AutoregressiveModel
from models.conditioning import Conditioning
from models.gated_pixelcnn import GatedPixelCNN
from models.pixel_rnn import PixelRNN
from models.pixelcnn import PixelCNN
from models.softmax_head import SoftmaxHead

VECTOR_SIZE = 3
KINDS = (
    "gated",
    "gated-label",
    "gated-vector",
    "gated-label-map",
    "gated-vector-map",
    "gated-label-turned",
    "pixelcnn",
    "row",
    "diagonal",
)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Every parameter from a normal distribution: nothing that starts at zero stays there."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)


def build(kind: str = "gated", seed: int = 0, *, image_size: int = 3, **changes: Any) -> AutoregressiveModel:
    """A model of one of KINDS in eval mode; `changes` are arguments of its body, or of its head."""
    channels, levels = changes.pop("channels", 3), changes.pop("levels", 4)
    head_filters, condition_dropout = changes.pop("head_filters", 12 * channels), changes.pop("condition_dropout", 0.0)
    scale = {name: changes.pop(name) for name in ("logit_scale", "trained_logit_scale") if name in changes}
    num_classes = 2 if "label" in kind else 0
    arguments: dict[str, Any] = {"channels": channels, "num_layers": 2, "num_filters": 4 * channels} | changes
    if kind.startswith("gated"):
        size = num_classes or ("vector" in kind) * VECTOR_SIZE
        form, filters = ("map", 5) if "map" in kind else ("vector", 0)
        conditioning = None
        if kind != "gated":
            conditioning = Conditioning(
                size=size,
                form=form,
                map_filters=filters,
                image_size=image_size,
                dropout=condition_dropout,
                turn_kinds=5 if "turned" in kind else 0,
            )
        body = GatedPixelCNN(**({"kernel_size": 3} | arguments), conditioning=conditioning)
    elif kind == "pixelcnn":
        body = PixelCNN(**({"first_kernel_size": 3} | arguments))
    else:
        body = PixelRNN(**({"kernel_size": 3} | arguments), recurrence=kind)
    head = SoftmaxHead(
        num_features=body.num_features, head_filters=head_filters, channels=channels, levels=levels, **scale
    )
    model = AutoregressiveModel(body=body, head=head, num_classes=num_classes).double()
    randomize(model, seed)
    return model.eval()


def condition_for(model: AutoregressiveModel, count: int, seed: int = 0) -> torch.Tensor | None:
    """A label or a vector for each of `count` images, as the model wants it."""
    if model.num_classes:
        return torch.arange(count) % model.num_classes
    if model.body.condition_size:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, model.body.condition_size, generator=generator, dtype=torch.float64)
    return None
