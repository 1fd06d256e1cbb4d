"""What a run is told from outside, agreed on by all ranks so that all do it after the same step."""

import time
from dataclasses import astuple, dataclass, replace
from datetime import timedelta

import torch
import torch.distributed

from pipeline.config import Config
from pipeline.told import Orders
from pipeline.worker import Worker

SECONDS_BETWEEN_LOOKS = 2.0
"""How often the ranks ask whether a node is being taken away."""


@dataclass(frozen=True)
class Agreed:
    """What all ranks do after this step."""

    save: bool = False
    look: bool = False
    stop: bool = False
    hold: bool = False
    leave: bool = False

    @property
    def ends(self) -> bool:
        """Whether this group of workers ends here."""
        return self.stop or self.hold or self.leave

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due now."""
        return self.save or self.ends


class OrderBook:
    """Rank 0 hears orders and watches the clock; every rank learns of them one step later, and none waits for it."""

    def __init__(self, config: Config, worker: Worker) -> None:
        self._worker = worker
        self._minutes = config.run.checkpoint_minutes
        self._next_look = self._last_save = time.monotonic()
        self._group: torch.distributed.ProcessGroup | None = None
        self._under_way: tuple[torch.Tensor, torch.distributed.Work] | None = None
        if worker.world_size > 1:
            timeout = timedelta(seconds=config.cluster.stall_seconds)
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    def turn(self) -> Agreed:
        """What was agreed on since the last step; every rank calls it after each step."""
        agreed = self._exchange(self._offer() if self._worker.rank == 0 else Agreed())
        if agreed.look and self._worker.is_preempted():  # a barrier of Ray Train, so all ranks ask or none
            agreed = replace(agreed, leave=True)
        return agreed

    def saved(self) -> None:
        """A checkpoint was made for whatever reason; run.checkpoint_minutes count from now."""
        self._last_save = time.monotonic()

    def _offer(self) -> Agreed:
        now = time.monotonic()
        look = now >= self._next_look
        if look:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
        save = self._minutes > 0 and now - self._last_save >= 60 * self._minutes
        if save:
            self._last_save = now
        orders = self._worker.orders()
        return Agreed(save=save, look=look, stop=Orders.STOP in orders, hold=Orders.HOLD in orders)

    def _exchange(self, offered: Agreed) -> Agreed:
        """What any rank offered at the last call; alone, at this one."""
        if self._group is None:
            return offered
        before, agreed = self._under_way, Agreed()
        if before:
            values, work = before
            work.wait()
            agreed = Agreed(*(bool(value) for value in values.tolist()))
        values = torch.tensor(astuple(offered), dtype=torch.uint8)
        work = torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._under_way = values, work
        return agreed


def wait_for_all(worker: Worker) -> None:
    """Wait until every rank is here, and a last agreement that is under way has come to its end."""
    if worker.world_size > 1:
        torch.distributed.barrier()
