"""In which precision and form the model runs on a device."""

from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.trainable import TrainableModel
from pipeline.config import Config
from pipeline.noise import with_random_levels
from pipeline.turned import with_turns

ModelT = TypeVar("ModelT", bound=nn.Module)


def autocast(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for convolutions where run.precision says so; parameters and likelihood stay in float32 or better."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(config, device))


def in_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether run.precision asks for bfloat16 on the device."""
    on_gpu = config.run.precision == "auto" and device.type == "cuda"
    return config.run.precision == "bfloat16" or on_gpu


def on_device(model: ModelT, device: torch.device) -> ModelT:
    """The model on the device, its convolutions' weights in channels_last order."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ModelWithLosses(nn.Module):
    """Images and labels to the loss of each image, as one graph: a compiler then fuses the losses with the logits."""

    def __init__(self, config: Config, model: TrainableModel, device: torch.device) -> None:
        super().__init__()
        self.model, self._device_type, self._in_bfloat16 = model, device.type, in_bfloat16(config, device)
        self._levels, self._train = config.data.levels, config.train
        self._turned_images: float = getattr(config.model, "turned_images", 0.0)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image, some of them turned and some read with noise, as the configuration says."""
        given: list[Tensor | None] = [labels] if self.model.reads_labels else []
        if self._turned_images:
            images, turns = with_turns(images, self._turned_images)
            given = [labels if self.model.reads_labels else None, turns]
        read = images
        if self._train.noisy_images:
            read = with_random_levels(
                images,
                self._levels,
                noisy_images=self._train.noisy_images,
                noisy_levels=self._train.noisy_levels,
            )
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._in_bfloat16):
            outputs = self.model(read, *given)
        return self.model.losses(outputs, images, labels)


def compiled(config: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """The model to train, through torch.compile or as it is; on GPUs cuDNN chooses its kernels by trial.

    By its rules the weights' gradients of 384 filters took 1.6 times as long.
    """
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if not is_compiled(config, device):
        return model
    mode = config.run.compile if config.run.compile in ("reduce-overhead", "max-autotune") else None
    return torch.compile(model, mode=mode)  # type: ignore[return-value]


def is_compiled(config: Config, device: torch.device) -> bool:
    """Whether run.compile asks for torch.compile on the device: on GPUs unless it is "off", on CPUs if it is "on"."""
    return config.run.compile == "on" or (config.run.compile != "off" and device.type == "cuda")
