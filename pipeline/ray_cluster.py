"""The Ray cluster that this process works on: the one that it is told of, or one of its own."""

import contextlib
import logging
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Iterator

AUTH_VARIABLES = {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}

if "ray" not in sys.modules and not AUTH_VARIABLES & os.environ.keys():
    # A cluster of this process's own is protected by a token of its own. Ray reads these when it is imported, and would
    # else write ~/.ray/auth_token, whereupon a later `ray start --head` on this machine asks for it and
    # `ray job submit` doesn't send it.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import psutil
import ray

from pipeline.errors import UserError
from pipeline.submitted_job import job_metadata

TRIES = 3
UNNEEDED = {
    # A worker for each CPU before any is asked for: Ray Train's all want an environment that these don't have.
    "RAY_prestart_worker_first_driver": "0",
    # A process beside each group that looks for nodes about to be taken away: this one's end is the driver's, too.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Variables by which Ray leaves out what a cluster of this process's own never uses; a person's own values count."""


def start_cluster(cpus: int) -> None:
    """Join the cluster that RAY_ADDRESS or a submitted job names, or start one on this machine.

    Args:
        cpus: what will be asked of it; a cluster of this machine's own claims at least so many. 0: no cluster.

    Raises:
        UserError: Ray can't be reached or started.
    """
    logging.getLogger("ray").setLevel(logging.WARNING)
    if not cpus or ray.is_initialized():
        return
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        else:
            _start_own(max(cpus, os.cpu_count() or 1))
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise UserError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', '(a cluster of this process)')}: Ray can't be reached or "
            f"started ({first_line(error)}); check the address, the token (RAY_AUTH_MODE), and this machine's memory, "
            "disk and load"
        ) from error
    there = ray.cluster_resources().get("CPU", 0)
    if there < cpus:
        print(
            f"warning: cluster.num_workers wants {cpus} CPUs, the cluster has {there:g}; waiting for more nodes",
            flush=True,
        )


def _start_own(cpus: int) -> None:
    """Start a cluster on this machine, anew where Ray gives up on its own processes.

    A raylet ends itself where one of its agents is not up within 15 s, which nothing sets
    (https://github.com/ray-project/ray/issues/65983): on a busy machine, or one that reads its packages for the first
    time. The next try finds them in memory.

    Raises:
        RuntimeError: it did not come up in TRIES tries.
    """
    others = set(psutil.Process().children(recursive=True))
    program = shlex.quote(sys.executable)  # Ray has a shell start its workers with the path as it is
    environment = {"py_executable": program} if program != sys.executable else None
    for count in range(1, TRIES + 1):
        try:
            with _inherited(UNNEEDED):
                ray.init(
                    address="local", include_dashboard=False, num_cpus=cpus, logging_level=logging.ERROR,
                    log_to_driver=False, runtime_env=environment,
                )  # fmt: skip
            return
        except Exception as error:
            if type(error) is not Exception:  # which is what Ray raises then
                raise
            failure = first_line(error)
        print(f"warning: Ray did not come up, try {count} of {TRIES}: {failure}", flush=True)
        left = [child for child in psutil.Process().children(recursive=True) if child not in others]
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=10)
    raise RuntimeError(f"{TRIES} times: {failure.rstrip('.')}; Ray's logs are in /tmp/ray/session_latest/logs")


@contextlib.contextmanager
def _inherited(variables: dict[str, str]) -> Iterator[None]:
    """What this process starts while this lasts has these variables; the values that it has itself count."""
    missing = variables.keys() - os.environ.keys()
    os.environ |= {name: variables[name] for name in missing}
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def started_here() -> bool:
    """Whether this process has started the cluster that it works on, which then no autoscaler makes larger."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def driver_tags() -> dict[str, str]:
    """MLflow tags of where the process that launches a run is, each time that it starts.

    `cluster`: its name where its nodes know one (ours on AWS, KubeRay's), else its address; "local" for one of this
    process's own. `ray_job_id`: what `ray job submit` called the job, "none" where it was not submitted.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return {"cluster": "local", "ray_job_id": "none"}
    named = os.environ.get("PIXELCNN_CLUSTER") or os.environ.get("RAY_CLUSTER_NAME")
    return {
        "cluster": named or (f"auto on {socket.gethostname()}" if address == "auto" else address),
        "ray_job_id": job_metadata().get("job_submission_id", "none"),
    }


def first_line(error: BaseException) -> str:
    """What an error says first."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """What an error says last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
