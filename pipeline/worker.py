"""What the loop knows of where it runs; Ray stands behind it in pipeline.launch."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Worker(Protocol):
    """One of `world_size` processes that train together."""

    @property
    def rank(self) -> int:
        """0 .. world_size-1; rank 0 speaks, draws and tracks."""

    @property
    def world_size(self) -> int:
        """Workers of the group."""

    @property
    def device(self) -> torch.device:
        """Where this worker's tensors lie."""

    def report(self, metrics: dict[str, float], checkpoint: Path | None, name: str) -> None:
        """Keep a checkpoint folder (rank 0's; None on the others) under the run as `name`; every rank calls it."""
