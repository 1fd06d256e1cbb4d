"""In which precision and form the model runs on a device."""

from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import nn

from pipeline.config import Config

ModelT = TypeVar("ModelT", bound=nn.Module)


def autocast(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for convolutions where run.precision says so; parameters and likelihood stay in float32 or better."""
    on_gpu = config.run.precision == "auto" and device.type == "cuda"
    enabled = config.run.precision == "bfloat16" or on_gpu
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def on_device(model: ModelT, device: torch.device) -> ModelT:
    """The model on the device, its convolutions' weights in channels_last order."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(config: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """The model as run.compile says: through torch.compile on GPUs, as it is on CPUs."""
    wanted = config.run.compile == "on" or (config.run.compile == "auto" and device.type == "cuda")
    return torch.compile(model) if wanted else model  # type: ignore[return-value]
