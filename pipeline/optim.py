"""AdamW, its learning rate by step, and the averaged weights that are evaluated and drawn from."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config import Training


def learning_rate(training: Training, step: int) -> float:
    """The rate of a step (the first is 1): linear warm-up, then half a cosine down to the final share."""
    if step <= training.warmup_steps:
        return training.learning_rate * step / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return training.learning_rate * (training.final_learning_rate + (1.0 - training.final_learning_rate) * cosine)


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW over all parameters that are trained, its update in one fused kernel."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )


def build_averaged(model: nn.Module, training: Training) -> AveragedModel:
    """The exponential moving average of the weights, of short memory in the first steps."""
    return AveragedModel(model, multi_avg_fn=_average(training.ema_decay))


def _average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        updates = int(num_averaged)
        weight = 1.0 - min(decay, (1.0 + updates) / (10.0 + updates))
        torch._foreach_lerp_(list(averaged), list(current), weight)

    return update
