"""Node types that EC2 has just refused, told to Ray's autoscaler so that it tries the next type by priority.

Ray lowers a type for a while when its instances don't come up in time, but not when EC2 refuses to start one: it would
ask for the same type at every round. What this relies on of Ray's classes is checked by tests/infra/test_provider.py.
"""

import queue
import time

from ray.autoscaler.v2 import autoscaler
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor

_refused: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()


class RefusalsCount(CloudResourceMonitor):
    """Ray's record of types that can't be had, with those that were refused at once."""

    def get_recoverable_resource_availabilities(self) -> dict[str, float]:
        """From 0 (just refused) to 1 by type; Ray sorts by it before it sorts by priority."""
        while not _refused.empty():
            node_type, at = _refused.get()
            self._last_unavailable_timestamp[node_type] = at
        return dict(super().get_recoverable_resource_availabilities())


def refuse(node_type: str) -> None:
    """Say that a type can't be had now; Ray comes back to it after RAY_AUTOSCALER_AVAILABILITY_RECOVERY_S, 600 s."""
    _refused.put((node_type, time.time()))


def count_refusals() -> None:
    """Have the autoscaler that is being made in this process keep this record instead of Ray's own."""
    autoscaler.CloudResourceMonitor = RefusalsCount
