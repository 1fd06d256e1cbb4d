"""The door to Ray Train: a function on every worker of the configuration's cluster, retried where a retry can mend."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# First, as it decides on a token, which Ray reads when it is imported.
from pipeline.ray_cluster import last_line, start_cluster

# isort: split
import ray.train
import torch
from ray.train.torch import TorchConfig, get_device
from ray.util.metrics import Gauge

from pipeline.allocator import KEEP_FREED_MEMORY
from pipeline.arrow_storage import filesystem_of
from pipeline.config import Config
from pipeline.errors import StoppedError, UserError
from pipeline.mailbox import ForwardedOutput, Hear, Mailbox, Reader
from pipeline.ray_controller import (
    CheckpointBeforeResize,
    EndWhatHangs,
    FailureCount,
    Trainer,
    require_memory,
    set_timeouts,
)
from pipeline.told import Orders

SECONDS_TO_STOP = 20
"""How long workers may take to keep a checkpoint after SIGTERM or Ctrl-C before the driver ends without them."""
STDERR = 2
SECONDS_BETWEEN_RESIZES = 30.0
SECONDS_OF_HOLDING = 60.0

Job = Callable[["RayWorker", Any], dict[str, Any] | None]

_stop_wanted = threading.Event()


@dataclass(frozen=True)
class RayWorker:
    """This process as one of Ray Train's workers."""

    rank: int
    world_size: int
    device: torch.device
    reader: Reader | None
    """Rank 0's, where there is a cluster."""
    _gauges: dict[str, Gauge] = field(default_factory=dict)

    def report(self, metrics: dict[str, float]) -> None:
        """Tell Ray Train, and who hears on the driver, how far the run is; a barrier, every rank calls it."""
        ray.train.report(metrics)
        if self.reader:
            self.reader.mailbox.report(metrics)

    def show(self, run: str, metrics: dict[str, float]) -> None:
        """Set Ray's gauges pixelcnn_train_bits_per_dim and the like, which Prometheus reads with Ray's own metrics."""
        if self.reader is None:
            return
        for key, value in metrics.items():
            name = f"pixelcnn_{key.replace('/', '_')}"
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, f"{key} of a run, as in MLflow", tag_keys=("run",))
            self._gauges[name].set(value, {"run": run})

    def orders(self) -> Orders:
        """What the run has been told; rank 0 asks."""
        if self.reader:
            return self.reader.orders()
        return Orders.STOP if _stop_wanted.is_set() else Orders.NONE

    def is_preempted(self) -> bool:
        """Whether a node of the group is being taken away; a barrier, every rank calls it."""
        return ray.train.get_preemption_info() is not None

    def hold(self) -> None:
        """Say on rank 0 that the checkpoint is kept, and wait for the end of this process."""
        if self.reader:
            self.reader.mailbox.kept()
        time.sleep(SECONDS_OF_HOLDING)
        raise RuntimeError(f"held for {SECONDS_OF_HOLDING:g} s, but Ray Train did not end this worker")


def run_on_workers(
    config: Config,
    job: Job,
    argument: Any,
    run_url: str,
    *,
    obeys: bool = False,
    hear: Hear | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Call job(worker, argument) on every worker and give what rank 0 returned.

    Args:
        config: its cluster section says how many workers, where, and how often to retry.
        job: a module-level function.
        argument: what it gets beside the worker; it is pickled.
        run_url: folder of the run, where Ray Train's hang detector writes.
        obeys: whether the job obeys Orders; SIGTERM and Ctrl-C then become Orders.STOP.
        hear: called here, in a thread of its own, with what rank 0 reports, where the cluster has workers.
        callbacks: what else Ray Train's controller calls.

    Raises:
        UserError: a worker met one, workers were lost more often than cluster.max_failures, or can't be started.
        StoppedError: SIGTERM or Ctrl-C came, and the workers were given SECONDS_TO_STOP to keep a checkpoint, or Ctrl-C
            came again.
    """
    cluster = config.cluster
    set_timeouts(cluster)
    start_cluster(cluster.num_workers * cluster.cpus_per_worker)
    mailbox = Mailbox() if cluster.num_workers else None
    parent, name = run_url.rsplit("/", 1)
    filesystem, path = filesystem_of(parent)
    trainer = Trainer(
        _on_worker,
        train_loop_config={"job": job, "argument": argument, "threads": cluster.cpus_per_worker, "mailbox": mailbox},
        torch_config=TorchConfig(timeout_s=round(cluster.stall_seconds)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(cluster.min_workers, cluster.num_workers) if cluster.min_workers else cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[*_callbacks(mailbox, cluster.max_failures, run_url, obeys), *callbacks] if mailbox else [],
            failure_config=ray.train.FailureConfig(max_failures=-1),  # FailureCount counts
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
            worker_runtime_env={} if cluster.use_gpu else {"env_vars": KEEP_FREED_MEMORY},
        ),
    )
    with (
        _stopping(mailbox) if obeys else contextlib.nullcontext(),
        mailbox.delivered(hear) if mailbox else contextlib.nullcontext(),
    ):
        return _fit(trainer)


def _callbacks(mailbox: Mailbox, max_failures: int, run_url: str, obeys: bool) -> list[Any]:
    callbacks = [FailureCount(mailbox, max_failures, run_url), EndWhatHangs()]
    return [*callbacks, CheckpointBeforeResize(mailbox, SECONDS_OF_HOLDING)] if obeys else callbacks


def _fit(trainer: Trainer) -> dict[str, Any]:
    try:
        result = trainer.fit()
    except ray.train.ControllerError as error:
        failure: BaseException | None = error
        while failure is not None and not isinstance(failure, UserError):
            failure = getattr(failure, "controller_failure", None) or failure.__cause__
        raise failure or UserError(f"Ray Train's controller failed: {last_line(error)}; see Ray's logs") from error
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise UserError(
            f"the cluster was lost ({last_line(error)}); once it is back, run the same command to go on from the last "
            "checkpoint"
        ) from error
    except RuntimeError as error:  # what this process itself meets, where it is the one worker
        require_memory(error)
        raise
    return result.return_value or {}


@contextlib.contextmanager
def _stopping(mailbox: Mailbox | None) -> Iterator[None]:
    """While it lasts SIGTERM, and so `ray job stop`, and Ctrl-C have the workers keep a checkpoint and end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        _stop_wanted.set()
        if mailbox:
            mailbox.order(Orders.STOP)
            signal.alarm(SECONDS_TO_STOP)

    def interrupt(signum: int, frame: object) -> None:
        if _stop_wanted.is_set():
            raise StoppedError("interrupted again; the newest sound checkpoint counts")
        os.write(STDERR, b"stopping with a checkpoint; Ctrl-C again ends without it\n")  # print may be at work below
        stop(signum, frame)

    def end(signum: int, frame: object) -> None:
        raise StoppedError(f"the workers did not end within {SECONDS_TO_STOP} s; the newest sound checkpoint counts")

    _stop_wanted.clear()
    handlers = {signal.SIGTERM: stop, signal.SIGALRM: end}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of jobs in a shell's background
        handlers[signal.SIGINT] = interrupt
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_worker(loop: dict[str, Any]) -> dict[str, Any] | None:
    context, mailbox = ray.train.get_context(), loop["mailbox"]
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(loop["threads"])
    rank = context.get_world_rank()
    reader = Reader(mailbox) if mailbox and rank == 0 else None
    worker = RayWorker(rank, context.get_world_size(), device, reader)
    if mailbox is None:
        returned: dict[str, Any] | None = loop["job"](worker, loop["argument"])
        return returned
    output = ForwardedOutput(mailbox)
    with contextlib.redirect_stdout(output):
        try:
            return loop["job"](worker, loop["argument"])
        finally:
            output.wait()
