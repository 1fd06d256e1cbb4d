"""What we add to Ray Train's controller, without a cluster; where it stands on Ray's insides this is their contract."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ray_controller
from pipeline.config import Cluster
from pipeline.errors import NoMemoryError, UserError
from pipeline.ray_cluster import ray  # decides on a token before Ray is imported

# isort: split
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, scaling_policy

from pipeline.ray_controller import CheckpointBeforeResize, FailureCount, Trainer, set_timeouts
from pipeline.storage import write
from pipeline.told import PreemptedError


@dataclass
class Letters:
    """A mailbox without an actor."""

    kept: bool = True
    lines: list[str] = field(default_factory=list)
    held: int = 0

    def print(self, line: str) -> None:
        self.lines.append(line)

    def hold(self, seconds: float) -> bool:
        self.held += 1
        return self.kept


def lost(number: int) -> dict[int, Exception]:
    return {0: RuntimeError(f"connection {number} reset"), 1: RuntimeError(f"killed {number}")}


def test_failures_count_once_each_and_a_checkpoint_forgives_them(tmp_path: Path) -> None:
    write(f"{tmp_path}/step-000000040/checkpoint.json", b"{}")
    mailbox = Letters()
    count = FailureCount(mailbox, 2, str(tmp_path))  # type: ignore[arg-type]
    for number in (1, 1, 1, 2):  # the controller may ask again before it acts
        count.after_exception(None, lost(number))
    assert mailbox.lines[:2] == ["worker 0 was lost (connection 1 reset)", "worker 1 was lost (killed 1)"]
    assert len(mailbox.lines) == 4
    count.after_report(None, [], None)
    for number in (3, 4):
        count.after_exception(None, lost(number))
    with pytest.raises(UserError, match=r"cluster\.max_failures 2 .*connection 5 reset; .*/step-000000040$"):
        count.after_exception(None, lost(5))


def test_any_number_of_failures_where_asked_for() -> None:
    count = FailureCount(Letters(), -1, "")  # type: ignore[arg-type]
    for number in range(20):
        count.after_exception(None, lost(number))


class DiedWithItsNodeError(ray.exceptions.RayActorError):
    """As Ray raises it for an actor on a node that was drained."""

    preempted = True


def test_nodes_taken_away_do_not_count() -> None:
    mailbox = Letters()
    count = FailureCount(mailbox, 0, "")  # type: ignore[arg-type]
    count.after_exception(None, {0: PreemptedError("a node is being taken away")})
    assert mailbox.lines == ["worker 0 leaves (a node is being taken away)"]
    count.after_exception(None, {0: RuntimeError("collective aborted"), 1: DiedWithItsNodeError()})
    assert mailbox.lines[1] == "worker 0 was lost (collective aborted)"


def test_what_a_retry_cannot_mend_ends_the_run() -> None:
    count = FailureCount(Letters(), -1, "")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lower train\.learning_rate"):
        count.after_exception(None, {0: RuntimeError("aborted"), 1: UserError("lower train.learning_rate")})


class ResizingState: ...


class SchedulingState: ...


class RunningState: ...


def test_a_working_group_keeps_a_checkpoint_before_it_is_replaced_and_a_dead_one_is_not_asked() -> None:
    mailbox = Letters()
    resize = CheckpointBeforeResize(mailbox, 1)  # type: ignore[arg-type]
    for now in (RunningState(), SchedulingState()):  # a start after a failure
        resize.after_controller_state_update(None, now)
    resize.before_controller_execute_resize_decision(None)
    assert mailbox.held == 0
    for now in (RunningState(), ResizingState(), SchedulingState()):
        resize.after_controller_state_update(None, now)
    mailbox.kept = False
    resize.before_controller_execute_resize_decision(None)
    assert mailbox.held == 1
    assert mailbox.lines[-1].startswith("warning: no checkpoint within 1 s")


def test_rays_states_are_called_so() -> None:
    for here in (ResizingState, SchedulingState, RunningState):
        assert hasattr(state, here.__name__)


def test_places_on_dead_and_draining_nodes_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = ray.train.ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1})
    policy = ray_controller._PresentNodesPolicy(scaling)
    nodes = [{"NodeID": name, "Alive": name != "dead"} for name in ("one", "two", "dead", "draining")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_controller.ray_state, "get_draining_nodes", lambda: {"draining": 0})
    reserved = {name: {"CPU": 1.0} for name in ("one", "two", "dead", "draining")}
    assert policy._count_possible_workers(reserved) == 2


@pytest.mark.parametrize(
    ("workers", "started_here", "policy"),
    [
        (2, False, type(None)), (2, True, ray_controller._OwnClusterPolicy),
        ((1, 2), False, ray_controller._PresentNodesPolicy), ((1, 2), True, ray_controller._PresentNodesPolicy),
    ],
)  # fmt: skip
def test_a_range_of_workers_and_a_cluster_of_this_process_get_our_policies(
    workers: int | tuple[int, int], started_here: bool, policy: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        ray.train.torch.TorchTrainer, "_initialize_and_run_controller", lambda self, **parts: given.update(parts)
    )
    monkeypatch.setattr(ray_controller, "started_here", lambda: started_here)
    trainer = Trainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=workers))
    trainer._initialize_and_run_controller(scaling_policy=None)
    assert type(given["scaling_policy"]) is policy


def test_on_a_cluster_of_this_process_nobody_is_asked_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(requester: str) -> None:
        pytest.fail(f"{requester} asks for nodes")

    monkeypatch.setattr(scaling_policy, "TrainAutoscalingCoordinatorClient", asked)
    policy = ray_controller._OwnClusterPolicy(ray.train.ScalingConfig(num_workers=2))
    policy.after_controller_start(None)
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1})
    assert policy.make_decision_for_running_worker_group(None, None) == NoopDecision()
    policy.before_controller_abort()


def test_all_of_rays_callbacks_are_there_but_those_that_start_a_process_for_nothing() -> None:
    ours, rays = (
        [type(each) for each in trainer(lambda: None)._create_default_callbacks()]
        for trainer in (Trainer, ray.train.torch.TorchTrainer)
    )
    assert len(rays) >= 5
    assert {DatasetsCallback, PlacementGroupCleanerCallback} < set(rays)
    assert ours == [each for each in rays if each not in (DatasetsCallback, PlacementGroupCleanerCallback)]


def test_ctrl_c_is_left_to_who_calls() -> None:
    before = signal.getsignal(signal.SIGINT)
    Trainer(lambda: None)._register_sigint_handler(None)
    assert signal.getsignal(signal.SIGINT) is before


def test_limits_reach_ray_train_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    set_timeouts(Cluster(num_workers=4, hang_seconds=12.5))
    assert os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] == "12.5"
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "60"
    assert "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR" not in os.environ
    set_timeouts(Cluster(num_workers=4, min_workers=2, use_gpu=True, stall_seconds=300))
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "10"
    assert os.environ["RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR"] == "1"
    assert os.environ["RAY_TRAIN_NCCL_RAS_ACTION"] == "fail"
    assert os.environ["RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S"] == "300.0"


def test_a_worker_without_memory_ends_the_run_as_such_at_once() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate")):
        with pytest.raises(NoMemoryError, match=r"ran out of memory .*; lower train\.batch_size"):
            FailureCount(Letters(), 3, "").after_exception(None, {0: error})  # type: ignore[arg-type]


def test_what_the_memory_monitor_kills_is_tried_again_first(tmp_path: Path) -> None:
    killed = WorkerHealthCheckFailedError("lost", ray.exceptions.OutOfMemoryError("the node was low on memory"))
    count = FailureCount(Letters(), 0, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(NoMemoryError, match="low on memory"):
        count.after_exception(None, {0: killed})
    FailureCount(Letters(), 1, str(tmp_path)).after_exception(None, {0: killed})  # type: ignore[arg-type]
