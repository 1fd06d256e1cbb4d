"""The door to Ray's tasks: a function for each of many items, over all nodes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import last_line, start_cluster

# isort: split
import ray

from pipeline.errors import UserError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
TASKS_A_CPU = 2


@contextlib.contextmanager
def own_cluster() -> Iterator[None]:
    """The cluster that this process works on; one that is started for this ends with it.

    What comes next may want another one, of more CPUs.

    Raises:
        UserError: Ray can't be reached or started.
    """
    is_own = not ray.is_initialized()
    start_cluster(1)
    try:
        yield
    finally:
        if is_own:
            ray.shutdown()


def map_tasks(function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[tuple[int, ResultT]]:
    """The index and result of every item as they come; at most two items a CPU of the running cluster are under way.

    Those under way when an error ends it go on until this process ends or its cluster does. They are not cancelled:
    Ray 2.60 kills the process where a task ends at the moment at which it is cancelled.

    Args:
        function: of a module, or a partial of one; items and results are pickled.

    Raises:
        UserError: the function raised one, or Ray could not carry a task to its end in four tries.
    """
    task = ray.remote(num_cpus=1)(_call)
    shared = ray.put(function)
    waiting, running = list(enumerate(items))[::-1], dict[Any, int]()
    while waiting or running:
        most = TASKS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < most:
            index, item = waiting.pop()
            running[task.remote(shared, item)] = index
        for reference in ray.wait(list(running))[0]:
            yield running.pop(reference), _result(reference)


def on_every_node(workers: int, function: Callable[..., ResultT], *arguments: Any) -> list[ResultT]:
    """What the function gives on each living node of the cluster, all at once; in this process for no workers.

    Raises:
        UserError: the function raised one, a node did not answer, or there is no cluster.
    """
    if workers == 0:
        return [function(*arguments)]
    start_cluster(1)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    running = [task.options(label_selector={ray._raylet.RAY_NODE_ID_KEY: node}).remote(*arguments) for node in nodes]
    return [_result(reference) for reference in running]


def _call(function: Callable[[ItemT], ResultT], item: ItemT) -> ResultT:
    return function(item)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from error
    except ray.exceptions.RayError as error:
        raise UserError(f"a task was lost ({last_line(error)}); run the same command to go on") from error
