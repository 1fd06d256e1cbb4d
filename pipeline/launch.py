"""The door to Ray Train: a function on every worker of the configuration's cluster, retried where a retry can mend."""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import first_line, last_line, start_cluster

# isort: split
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue

from pipeline.allocator import KEEP_FREED_MEMORY
from pipeline.arrow_storage import filesystem_of
from pipeline.checkpoint import upload
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.storage import delete, exists, join

SNAPSHOT_NAME = "checkpoint_manager_snapshot.json"

Job = Callable[["RayWorker", Any], dict[str, Any] | None]


@dataclass(frozen=True)
class RayWorker:
    """This process as one of Ray Train's workers."""

    rank: int
    world_size: int
    device: torch.device
    run_url: str

    def report(self, metrics: dict[str, float], checkpoint: Path | None, name: str) -> None:
        """Keep the checkpoint under the run and let Ray Train know of it; a barrier, every rank calls it."""
        if checkpoint is None:
            ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
            return
        local = ray.train.Checkpoint.from_directory(checkpoint)
        if not ray.is_initialized():  # Ray Train's local mode keeps no checkpoints
            local = self._keep(local, name)
        ray.train.report(metrics, checkpoint=local, checkpoint_dir_name=name, checkpoint_upload_fn=self._keep)

    def _keep(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        upload(Path(checkpoint.path), join(self.run_url, name))
        filesystem, path = filesystem_of(join(self.run_url, name))
        return ray.train.Checkpoint(path, filesystem)


class StopOnUserError(ray.train.UserCallback):
    """Ends the run at once on an error that a retry can't mend, and tells of those that it can."""

    def __init__(self, lines: Queue) -> None:
        self.lines = lines

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the person's error, if a worker met one; Ray Train doesn't retry what a callback raises."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        for rank, error in worker_exceptions.items():
            self.lines.put(
                f"worker {rank} was lost ({first_line(error)}); Ray Train decides whether to start the group anew"
            )


def run_on_workers(config: Config, job: Job, argument: Any, run_url: str) -> dict[str, Any]:
    """Call job(worker, argument) on every worker and give what rank 0 returned.

    Args:
        config: its cluster and run sections say how many workers, where, and how often to retry.
        job: a module-level function.
        argument: what it gets beside the worker; it is pickled.
        run_url: folder of the run, for Ray Train's own record and the checkpoints.

    Raises:
        UserError: a worker met one, workers were lost more often than cluster.max_failures, or can't be started.
    """
    cluster = config.cluster
    start_cluster(cluster.num_workers * cluster.cpus_per_worker)
    lines = Queue(actor_options={"num_cpus": 0}) if cluster.num_workers else None
    _remove_torn_snapshot(run_url)
    parent, name = run_url.rsplit("/", 1)
    filesystem, path = filesystem_of(parent)
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={
            "job": job,
            "argument": argument,
            "run_url": run_url,
            "threads": cluster.cpus_per_worker,
            "lines": lines,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[StopOnUserError(lines)] if lines is not None else [],
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.run.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
            worker_runtime_env={} if cluster.use_gpu else {"env_vars": KEEP_FREED_MEMORY},
        ),
    )
    with _printed(lines):
        return _fit(trainer, cluster.max_failures)


def _fit(trainer: TorchTrainer, max_failures: int) -> dict[str, Any]:
    try:
        result = trainer.fit()
    except ray.train.ControllerError as error:
        failure: BaseException | None = error
        while failure is not None and not isinstance(failure, UserError):
            failure = getattr(failure, "controller_failure", None) or failure.__cause__
        raise failure or UserError(f"Ray Train's controller failed: {last_line(error)}; see Ray's logs") from error
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"workers failed more often than cluster.max_failures {max_failures}: {last_line(error)}; "
            "run the same command to go on from the last checkpoint"
        ) from error
    return result.return_value or {}


def _on_worker(loop: dict[str, Any]) -> dict[str, Any] | None:
    context = ray.train.get_context()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(loop["threads"])
    worker = RayWorker(context.get_world_rank(), context.get_world_size(), device, loop["run_url"])
    with (
        contextlib.redirect_stdout(_Forwarded(loop["lines"])) if loop["lines"] is not None else contextlib.nullcontext()
    ):
        returned: dict[str, Any] | None = loop["job"](worker, loop["argument"])
    return returned


class _Forwarded(io.TextIOBase):
    """A worker's standard output, whose lines the driver prints as they are."""

    def __init__(self, lines: Queue) -> None:
        self._lines, self._rest = lines, ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._lines.put(line)
        return len(text)


@contextlib.contextmanager
def _printed(lines: Queue | None) -> Iterator[None]:
    """Print the workers' lines while they work, and what is left at the end."""
    if lines is None:
        yield
        return
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(0.2) or not lines.empty():
            for line in lines.get_nowait_batch(lines.qsize()):
                print(line, flush=True)

    thread = threading.Thread(target=print_lines, name="worker-lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)
        lines.shutdown()


def _remove_torn_snapshot(run_url: str) -> None:
    """Remove Ray Train's record of the run if a kill left it half-written; the checkpoints say what is there."""
    from ray.train import Result

    url = join(run_url, SNAPSHOT_NAME)
    if not exists(url):
        return
    filesystem, path = filesystem_of(run_url)
    try:
        Result.from_path(path, storage_filesystem=filesystem)
    except Exception as error:  # Ray raises what its parser and its asserts raise
        print(f"warning: {url} is torn ({last_line(error)}); it is made anew", flush=True)
        delete(url)
