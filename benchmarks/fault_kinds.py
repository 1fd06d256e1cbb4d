"""The faults of benchmarks/faults.py: what is done to a run on three hosts, and how it is mended."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from tests.host import Host, Job
from tests.hosts import Hosts
from tests.slow_link import counts_of, slow_link

Goes = Literal["by itself", "by the same command"]


@dataclass(frozen=True)
class Fault:
    """A fault, how many workers the run must have, and what a person has to do."""

    name: str
    strike: Callable[[Hosts, Job, random.Random], float | None]
    """Does it, and ends it where it is one that ends; gives when it was done if it took its time."""
    min_workers: int = 0
    goes_on: Goes = "by itself"
    needs: tuple[str, ...] = ()
    """The kernel's queue without which it can't be done."""


def other_than_head(hosts: Hosts, rng: random.Random) -> Host:
    """A host with a node that is neither the driver's nor the head's."""
    return rng.choice([host for host in hosts.hosts[1:] if host.node])


def random_worker(hosts: Hosts, rng: random.Random) -> psutil.Process:
    """One of the run's workers, on any host."""
    return rng.choice([worker for host in hosts.hosts if host.node for worker in host.workers()])


def kill_worker(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGKILL of a worker."""
    random_worker(hosts, rng).kill()


def stop_worker(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGSTOP of a worker, for good."""
    random_worker(hosts, rng).send_signal(signal.SIGSTOP)


def replace_node(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGKILL of a raylet, and another host's node in its place at once."""
    spare = next(host for host in hosts.hosts[1:] if not host.node)
    other_than_head(hosts, rng).kill_raylet()
    spare.start_node()


def lose_node(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGKILL of a raylet."""
    other_than_head(hosts, rng).kill_raylet()


def cut_for_a_while(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """A host's link is down for 5 s."""
    host = other_than_head(hosts, rng)
    host.cut()
    time.sleep(5)
    host.mend()


def cut_for_good(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """A host's link is down."""
    other_than_head(hosts, rng).cut()


NARROW = ("tbf", "rate", "2mbit", "burst", "32kbit", "latency", "400ms")


def late_frames(hosts: Hosts, rng: random.Random) -> tuple[int, int]:
    """What a host sends takes 200 ms and loses 5%, for 15 s; gives how many frames came late, and were lost."""
    with slow_link(other_than_head(hosts, rng), 200, 0.05) as told:
        time.sleep(15)
    return counts_of(told)


def late_link(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """A host's link is late and loses frames, which the run's own must be."""
    late, lost = late_frames(hosts, rng)
    assert late > 20, f"only {late} frames came late: the run did not feel it"
    assert lost, "no frame was lost: the run did not feel it"


def narrow_link(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """A host sends at 2 Mbit/s and what waits for 400 ms is lost, for 15 s."""
    with other_than_head(hosts, rng).shaped(*NARROW):
        time.sleep(15)


def drain(hosts: Hosts, job: Job, rng: random.Random) -> float:
    """A node is to be taken away in 15 s, and is; gives when that was said."""
    host = other_than_head(hosts, rng)
    said = host.drain(15)
    time.sleep(max(0.0, said + 15 - time.monotonic()))
    host.kill_raylet()
    return said


def kill_driver(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGKILL of the driver."""
    job.process.kill()


def stop_driver(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGTERM of the driver, as `ray job stop` sends."""
    job.process.terminate()


def kill_head(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """SIGKILL of everything on the head's host, the driver among it."""
    hosts[0].kill()


def storage_busy(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """Object storage answers 503 to everything for 20 s."""
    with hosts.s3_answers_503():
        time.sleep(20)


def storage_down(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """Object storage is gone for 60 s."""
    hosts.stop_s3()
    time.sleep(60)
    hosts.start_s3()


def tracking_down(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """The MLflow server is gone for 20 s."""
    hosts.stop_mlflow()
    time.sleep(20)
    hosts.start_mlflow()


def credentials_revoked(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """Object storage takes the keys no more."""
    hosts.stop_s3()
    hosts.start_s3("another secret")


def disk_full(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """The file system of the run's folder is full."""
    filler = ["dd", "if=/dev/zero", f"of={hosts.disk}/filler", "bs=64k"]
    subprocess.run(filler, capture_output=True, check=False)


def mend(hosts: Hosts) -> None:
    """Make three nodes again, all links up, storage as it was."""
    if not all(host.processes("/raylet") for host in hosts.hosts[:1]):
        for host in hosts.hosts:
            host.kill()
    for host in hosts.hosts:
        host.mend()
    (hosts.disk / "filler").unlink(missing_ok=True)


KINDS = [
    Fault("SIGKILL of a worker", kill_worker),
    Fault("SIGSTOP of a worker", stop_worker),
    Fault("SIGKILL of a raylet, replaced", replace_node),
    Fault("SIGKILL of a raylet, not replaced", lose_node, 1),
    Fault("link down for 5 s", cut_for_a_while),
    Fault("link down for good", cut_for_good, 1),
    Fault("200 ms delay and 5% loss for 15 s", late_link),
    Fault("2 Mbit/s, with losses, for 15 s", narrow_link, needs=NARROW),
    Fault("drain with a 15 s deadline", drain, 1),
    Fault("SIGKILL of the driver", kill_driver, goes_on="by the same command"),
    Fault("SIGTERM of the driver", stop_driver, goes_on="by the same command"),
    Fault("SIGKILL of the head's host", kill_head, goes_on="by the same command"),
    Fault("storage answers 503 for 20 s", storage_busy),
    Fault("storage down for 60 s", storage_down),
    Fault("MLflow down for 20 s", tracking_down),
    Fault("credentials revoked", credentials_revoked, goes_on="by the same command"),
    Fault("disk full", disk_full, goes_on="by the same command"),
]
