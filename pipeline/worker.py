"""What the loop knows of where it runs; Ray stands behind it in pipeline.launch."""

from typing import Protocol, runtime_checkable

import torch

from pipeline.told import Orders


@runtime_checkable
class Worker(Protocol):
    """One of `world_size` processes that train together."""

    @property
    def rank(self) -> int:
        """0 .. world_size-1; rank 0 speaks, draws, tracks and keeps checkpoints."""

    @property
    def world_size(self) -> int:
        """Workers of the group."""

    @property
    def device(self) -> torch.device:
        """Where this worker's tensors lie."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell who launched the run how far it is; a barrier, every rank calls it."""

    def show(self, run: str, metrics: dict[str, float]) -> None:
        """Show a run's metrics to who watches the cluster; rank 0."""

    def orders(self) -> Orders:
        """What the run has been told; rank 0 asks, it never waits."""

    def is_preempted(self) -> bool:
        """Whether a node of the group is being taken away; a barrier, every rank calls it."""

    def hold(self) -> None:
        """Say on rank 0 that the checkpoint is kept, and wait for the end of this process."""
