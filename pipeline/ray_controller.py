"""What we add to Ray Train's controller: what ends a run, which nodes count, checkpoints before a resize, SIGKILL."""

import contextlib
import os
import signal
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import first_line, last_line, started_here

# isort: split
import ray
import ray.train
import torch
from ray._private.state import state as ray_state
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy

from pipeline.checkpoint import steps_below
from pipeline.config import Cluster
from pipeline.errors import NoMemoryError, UserError
from pipeline.mailbox import Mailbox
from pipeline.storage import join
from pipeline.told import PreemptedError

START_SECONDS = "60"
ELASTIC_START_SECONDS = "10"
"""How long a new group waits for its places: with a range of workers a smaller group starts instead."""
POLL_SECONDS = "1"
DRAIN_POLL_SECONDS = "2"
LEAVE_SECONDS = "5"
ALLOCATOR = "DefaultCPUAllocator"
"""What torch's message names when the host refuses memory; it is a RuntimeError there."""
LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Callbacks of Ray's that start a process beside each run.

One deals out Ray datasets, of which there are none. One frees the places of a run whose controller died: Ray does so at
the driver's end, and pipeline/search/places.py in a search.
"""


def set_timeouts(cluster: Cluster) -> None:
    """Tell Ray Train, by its variables, when to give a worker up; it reads them when a run starts."""
    os.environ |= {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": ELASTIC_START_SECONDS if cluster.min_workers else START_SECONDS,
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(cluster.hang_seconds),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": POLL_SECONDS,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": DRAIN_POLL_SECONDS,
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else Ray's logger takes print from ForwardedOutput
    }
    if cluster.use_gpu:
        os.environ |= {
            "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
            "RAY_TRAIN_NCCL_RAS_ACTION": "fail",
            "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": str(cluster.stall_seconds),
        }


class FailureCount(ray.train.UserCallback):
    """Ends the run on an error that a retry can't mend, or after too many failures without a checkpoint in between."""

    def __init__(self, mailbox: Mailbox, max_failures: int, run_url: str) -> None:
        self._mailbox, self._max_failures, self._run_url = mailbox, max_failures, run_url
        self._failures, self._counted = 0, ""

    def after_report(self, run_context: object, metrics: object, checkpoint: object) -> None:
        """The run gets on."""
        self._failures = 0

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Count a failure once; Ray Train retries, except what is raised here."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
            require_memory(error)
        told = str(sorted((rank, str(error)) for rank, error in worker_exceptions.items()))
        if told == self._counted:
            return
        self._counted = told
        for rank, error in worker_exceptions.items():
            left = isinstance(error, PreemptedError)
            self._mailbox.print(f"worker {rank} {'leaves' if left else 'was lost'} ({first_line(error)})")
        if any(map(_is_taken_away, worker_exceptions.values())):
            return
        self._failures += 1
        if 0 <= self._max_failures < self._failures:
            error = next(iter(worker_exceptions.values()))
            if any(map(_is_killed_for_memory, worker_exceptions.values())):
                raise _no_memory(error)
            raise UserError(
                f"workers failed more often than cluster.max_failures {self._max_failures} with no checkpoint in "
                f"between: {last_line(error)}; run the same command to go on from {self._last_checkpoint()}"
            )

    def _last_checkpoint(self) -> str:
        names = steps_below(self._run_url)
        return join(self._run_url, names[0]) if names else "the start, as there is no checkpoint"


def _is_killed_for_memory(error: Exception) -> bool:
    """Whether Ray's memory monitor ended the worker."""
    return isinstance(getattr(error, "health_check_failure", error), ray.exceptions.OutOfMemoryError)


def require_memory(error: Exception) -> None:
    """Raise NoMemoryError if the error is of torch, whose device or host has no memory left."""
    if isinstance(error, torch.OutOfMemoryError) or ALLOCATOR in str(error):
        raise _no_memory(error)


def _no_memory(error: Exception) -> NoMemoryError:
    return NoMemoryError(
        f"a worker ran out of memory ({last_line(error)}); lower train.batch_size, evaluate.batch_size or "
        "sample.batch_size, whichever was at work, or the size of the model"
    )


def _is_taken_away(error: Exception) -> bool:
    """Whether a worker left, or died, because its node was taken away with notice."""
    died = getattr(error, "health_check_failure", error)
    return isinstance(error, PreemptedError) or bool(getattr(died, "preempted", False))


class CheckpointBeforeResize(ControllerCallback):
    """Has the running group keep a checkpoint before it is replaced by a larger or smaller one."""

    def __init__(self, mailbox: Mailbox, seconds: float) -> None:
        self._mailbox, self._seconds, self._is_running = mailbox, seconds, False

    def after_controller_state_update(self, previous_state: object, current_state: object) -> None:
        """Remember whether the group that is about to be replaced works; called after every change of state."""
        name = type(current_state).__name__
        if name == "ResizingState":
            self._is_running = True
        elif name != "SchedulingState":
            self._is_running = False

    def before_controller_execute_resize_decision(self, resize_decision: object) -> None:
        """Wait for the checkpoint; without one in time the new group goes on from the one before."""
        if self._is_running:
            number = getattr(resize_decision, "num_workers", "?")
            self._mailbox.print(f"the group starts anew with {number} workers")
            if not self._mailbox.hold(self._seconds):
                self._mailbox.print(f"warning: no checkpoint within {self._seconds:g} s; going on from the one before")


class EndWhatHangs(ControllerCallback, WorkerGroupCallback):
    """Kills processes that no longer answer as soon as they are given up: a stopped one ends by nothing but SIGKILL.

    Ray asks every worker to leave its process group, and waits for 30 s, before it frees the places of the next group.
    """

    def after_controller_start(self, train_run_context: object) -> None:
        """Wait less, as one that is cut off can't be killed; in the controller's process, which reads it."""
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = LEAVE_SECONDS

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember where the workers are."""
        self._places = {
            worker.distributed_context.world_rank: (worker.metadata.node_id, worker.metadata.pid)
            for worker in worker_group.get_workers()
        }

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Kill what has been given up, by a task on its host; nothing waits for it."""
        kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
        for rank, error in worker_group_status.errors.items():
            if isinstance(error, WorkerHealthCheckTimeoutError):
                node, pid = self._places[rank]
                kill.options(label_selector={ray._raylet.RAY_NODE_ID_KEY: node}).remote(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class _PresentNodesPolicy(ElasticScalingPolicy):
    """Counts places on nodes that are there to stay; Ray's list is up to 20 s old and has draining nodes in it."""

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        draining = ray_state.get_draining_nodes()
        there = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(draining)
        return super()._count_possible_workers(
            {node: resources for node, resources in reserved_resources.items() if node in there}
        )


class _OwnClusterPolicy(FixedScalingPolicy):
    """Asks for no nodes: that takes an actor for whose process the controller waits, and here none are to be had."""

    def after_controller_start(self, train_run_context: object) -> None:
        """Nothing is asked for."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""


class Trainer(TorchTrainer):
    """Ray's trainer with our policies, and without processes that nobody needs."""

    def _register_sigint_handler(self, controller: object) -> None:
        """Leave Ctrl-C to who calls: Ray's answer ends the workers, and this process with status 1, without a word."""

    def _create_default_callbacks(self) -> list[Any]:
        """Ray's own, but for those that are not needed."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, LEFT_OUT)]

    def _initialize_and_run_controller(self, **parts: object) -> ray.train.Result:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = _PresentNodesPolicy(self.scaling_config)
        elif started_here():
            parts["scaling_policy"] = _OwnClusterPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)
