"""A run under random faults for a long time: what share of its time was training, and whether it ends the same."""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fault_kinds import (
    cut_for_a_while,
    kill_worker,
    lose_node,
    narrow_link,
    other_than_head,
    stop_worker,
    storage_busy,
    tracking_down,
)
from tests.host import Job
from tests.hosts import Hosts, cluster_of_hosts

SECONDS_BETWEEN_FAULTS = 60.0
SECONDS_WITHOUT_A_NODE = 20.0


def drain_and_return(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """A node leaves with 10 s of notice, and another comes for it."""
    host = other_than_head(hosts, rng)
    host.drain(10)
    time.sleep(10)
    host.kill_raylet()
    time.sleep(SECONDS_WITHOUT_A_NODE)
    host.start_node()


def lose_and_return(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """A node dies, and another comes for it."""
    lose_node(hosts, job, rng)
    time.sleep(SECONDS_WITHOUT_A_NODE)
    next(host for host in hosts.hosts if not host.node).start_node()


STRIKES: list[Callable[[Hosts, Job, random.Random], None]] = [
    kill_worker, stop_worker, lose_and_return, drain_and_return, cut_for_a_while, narrow_link, storage_busy,
    tracking_down,
]  # fmt: skip


@dataclass
class Soak:
    """What was done to a run, and its lines."""

    job: Job
    seconds: float
    faults: list[str] = field(default_factory=list)

    def restarts(self) -> list[tuple[float, float, int]]:
        """When each group failed or was resized, when the next one took a step, and how many steps were done twice."""
        found, reached, last = [], 0, self.job.lines[0][0]
        waiting = False
        for when, line in self.job.lines:
            waiting = waiting or line.startswith("going on from")
            for at, step in Job.steps_in([(when, line)]):
                if waiting:
                    found.append((last, at, max(0, reached - step + 1)))
                    waiting = False
                reached, last = max(reached, step), at
        return found


def soak(hosts: Hosts, words: list[str], seed: int) -> Soak:
    """Strike a run until it ends: exponential times between faults, any of STRIKES."""
    rng, started = random.Random(seed), time.monotonic()
    result = Soak(hosts[0].job(*words), 0.0)
    result.job.wait_for("step ")
    while result.job.process.poll() is None:
        due = time.monotonic() + rng.expovariate(1 / SECONDS_BETWEEN_FAULTS)
        while time.monotonic() < due and result.job.process.poll() is None:
            time.sleep(0.2)
        strike = rng.choice(STRIKES)
        if result.job.process.poll() is None and any(host.workers() for host in hosts.hosts):
            result.faults.append(strike.__name__)
            print(f"{time.monotonic() - started:.0f} s: {strike.__name__}", flush=True)
            strike(hosts, result.job, rng)
    assert result.job.end() == 0, result.job.told
    result.seconds = result.job.lines[-1][0] - started
    return result


def run_soak(minutes: float, number: int, words_for: Callable[..., list[str]], measure: Callable[..., float]) -> None:
    """An undisturbed run of so many steps that it takes 0.4 of the minutes, the same one under faults, and figures.

    Args:
        minutes: about how long the disturbed run shall take.
        number: of the rig.
        words_for: gives the command from the run's name, least workers and steps.
        measure: the largest difference between the losses that MLflow has of two runs.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pixelcnn-soak-") as folder,
        cluster_of_hosts(Path(folder), number) as hosts,
    ):
        trial = hosts[0].job(*words_for("trial", 0, 600))
        assert trial.end() == 0, trial.told
        (first, first_step), *_, (last, last_step) = trial.steps()[:-1]
        speed = (last_step - first_step) / (last - first)
        steps = max(1000, round(minutes * 60 * speed * 0.4, -2))
        print(f"{speed:.2f} steps a second; {steps:,} steps", flush=True)
        alone = hosts[0].job(*words_for("undisturbed", 0, steps))
        assert alone.end(3600) == 0, alone.told
        (first, _), *_, (last, _) = alone.steps()
        print(f"undisturbed: {last - first:.0f} s from the first line to the last", flush=True)
        result = soak(hosts, words_for("soak", 1, steps), 0)
        tell(result, last - first, steps)
        print(f"last line alone: {alone.lines[-1][1]}\nlast line struck: {result.job.lines[-1][1]}")
        print(f"largest difference of a training loss: {measure(hosts, 'soak', 'undisturbed'):.2g} bits/dim")


def tell(result: Soak, alone: float, steps: float) -> None:
    """Print the ratios."""
    (first, _), *_, (last, _) = result.job.steps()
    restarts = result.restarts()
    gaps, repeated = sum(after - before for before, after, _ in restarts), sum(lost for _, _, lost in restarts)
    seconds = last - first
    counts = {name: result.faults.count(name) for name in sorted(set(result.faults))}
    print(f"struck: {seconds / 60:.1f} minutes, {len(result.faults)} faults {counts}, {len(restarts)} restarts")
    print(f"between a group's last line and the next one's first: {gaps:.0f} s; {repeated} of {steps:,} steps repeated")
    print(f"ratio of training time: {alone / seconds:.3f} of all, {alone / (seconds - gaps):.3f} net of restarts")
