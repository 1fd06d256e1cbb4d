"""Frees the places of trials that have ended, whichever way: Ray Train leaves that to a helper that often can't.

The workers of a run have their places in a placement group, which Ray keeps until the whole job ends. Ray Train's own
helper removes it when the run's controller has died, but asks the dashboard, which a cluster on one machine may not
have, and doesn't find where several clusters are on one machine; it then asks for ever, a process of 200 MB for each
trial that was stopped. So pipeline.ray_controller leaves it out.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
import pipeline.ray_cluster  # noqa: F401

# isort: split
import ray
from ray._private.state import state as ray_state
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Queue

LOOK_SECONDS = 0.5


class TellPlaces(WorkerGroupCallback):
    """Tells, from a run's controller, where its workers are and whose death ends them."""

    def __init__(self, taken: Queue) -> None:
        self._taken = taken

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray Train's controller in its own process."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._taken.put((ray.get_runtime_context().get_actor_id(), group))


@contextlib.contextmanager
def places_freed() -> Iterator[Queue]:
    """While it lasts, what TellPlaces tells the queue is freed within a second of its controller's death."""
    taken, over = Queue(actor_options={"num_cpus": 0}), threading.Event()
    thread = threading.Thread(target=_watch, args=(taken, over), name="places", daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()
        taken.shutdown()


def _watch(taken: Queue, over: threading.Event) -> None:
    runs: list[tuple[str, PlacementGroup]] = []
    while not over.is_set():
        with contextlib.suppress(queue.Empty):
            runs.append(taken.get(timeout=LOOK_SECONDS))
        for run in list(runs):
            controller, group = run
            if ray_state.actor_table(controller).get("State", "DEAD") == "DEAD":
                remove_placement_group(group)
                runs.remove(run)
