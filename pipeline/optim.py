"""AdamW and Muon, their learning rates by step, and the averaged weights that are evaluated and drawn from."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models.causal_conv import CausalConv, GroupedPointwise, HorizontalConv
from models.lstm_scan import StateToState
from pipeline.config import Training
from pipeline.muon import AdamWWithMuon

CONVOLUTIONS = (GroupedPointwise, HorizontalConv, CausalConv, StateToState)


def rate_share(training: Training, step: int) -> float:
    """Share of the peak at a step (the first is 1): linear warm-up, then half a cosine down to the final share."""
    if step <= training.warmup_steps:
        return step / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return training.final_learning_rate + (1.0 - training.final_learning_rate) * cosine


def learning_rate(training: Training, step: int) -> float:
    """AdamW's rate of a step."""
    return training.learning_rate * rate_share(training, step)


def build_optimizer(model: nn.Module, training: Training) -> AdamWWithMuon:
    """AdamW, its update in one fused kernel, over all that is trained; Muon for the matrices where it has a rate."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    by_muon = matrices(model) if training.muon_learning_rate else set()
    return AdamWWithMuon(
        [parameter for parameter in trained if parameter in by_muon],
        [parameter for parameter in trained if parameter not in by_muon],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )


def set_rates(optimizer: AdamWWithMuon, training: Training, step: int) -> None:
    """Give both groups their rate of a step."""
    share = rate_share(training, step)
    for group in optimizer.param_groups:
        group["lr"] = share * (training.muon_learning_rate if group["muon"] else training.learning_rate)


def matrices(model: nn.Module) -> set[Tensor]:
    """What Muon takes: the kernels of all convolutions, but for those that read the condition."""
    convolutions = [one for one in model.modules() if isinstance(one, CONVOLUTIONS) or type(one) is nn.Conv2d]
    return {one for module in convolutions for one in module.parameters() if one.ndim > 1}


class Averaged(AveragedModel):
    """The exponential moving average of one model's weights, of short memory in its first steps.

    torch's own update asks the GPU for the count of updates, and so waits for all its work at each step; and it goes
    through all modules for their parameters, which takes milliseconds.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._decay = decay
        self._own, self._followed = list[Tensor](self.module.parameters()), list[Tensor](model.parameters())
        self._buffers_followed = list(zip(self.module.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the parameters of the model that it was made of; buffers are copied."""
        updates = int(self.n_averaged)
        weight = 1.0 - min(self._decay, (1.0 + updates) / (10.0 + updates)) if updates else 1.0
        torch._foreach_lerp_(self._own, self._followed, weight)
        for own, followed in self._buffers_followed:
            own.copy_(followed)
        self.n_averaged += 1
