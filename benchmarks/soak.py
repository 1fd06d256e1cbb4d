"""A run under random faults for a long time: what share of its time was training, and whether it ends the same."""

import dataclasses
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.fault_kinds import (
    cut_for_a_while,
    kill_worker,
    late_frames,
    lose_node,
    other_than_head,
    stop_worker,
    storage_busy,
    tracking_down,
)
from benchmarks.fault_record import machine
from benchmarks.fault_runs import against, losses_of, require_whole_run, words_for
from tests.host import Job, end
from tests.hosts import PATIENCE, Hosts, cluster_of_hosts, free_number

SECONDS_BETWEEN_FAULTS = 60.0
SECONDS_WITHOUT_A_NODE = 20.0
SHARE_OF_TRAINING = 0.7
"""What of the soak's time is expected to be training: by it the number of steps is chosen."""
TRIAL_STEPS, LOG_INTERVAL = 150, 10


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


def late_for_a_while(hosts: Hosts, job: Job, rng: random.Random) -> None:
    """What a host sends comes late, and some of it never, for 15 s."""
    late_frames(hosts, rng)


STRIKES: list[Callable[[Hosts, Job, random.Random], Any]] = [
    kill_worker, stop_worker, lose_and_return, drain_and_return, cut_for_a_while, late_for_a_while,
    storage_busy, tracking_down,
]  # fmt: skip


@dataclass
class Soak:
    """What was done to a run, and its lines."""

    job: Job
    faults: list[str] = field(default_factory=list)

    def restarts(self) -> list[tuple[float, float, int]]:
        """When each group told its last step, when the next one its first, and how many steps were done twice."""
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


def soak(hosts: Hosts, words: list[str], seed: int, note: Callable[..., None]) -> Soak:
    """Strike a run until it ends: any of STRIKES, exponential times from one to the next, one at a time."""
    rng, result = random.Random(seed), Soak(hosts[0].job(*words))
    job = result.job
    try:
        job.wait_for("step ", PATIENCE)
        started = due = time.monotonic()
        while job.process.poll() is None:
            due = max(time.monotonic(), due + rng.expovariate(1 / SECONDS_BETWEEN_FAULTS))
            while time.monotonic() < due and job.process.poll() is None:
                time.sleep(0.2)
            revive(hosts)
            strike = rng.choice(STRIKES)
            if job.process.poll() is None and any(host.workers() for host in hosts.hosts):
                result.faults.append(strike.__name__)
                note("fault", name=strike.__name__, second=round(time.monotonic() - started), step=job.steps()[-1][1])
                try:
                    strike(hosts, job, rng)
                except Exception as error:  # what it left must be survived as well
                    note("strike broke off", error=f"{type(error).__name__}: {error}"[-2000:])
        job.end(PATIENCE)
    finally:
        if job.process.poll() is None:
            end(job.process)
    return result


def revive(hosts: Hosts) -> None:
    """Start anew the nodes that Ray gave up, and that ended of it, as what looks after machines would."""
    for host in hosts.hosts[1:]:
        if host.node and not host.processes("/raylet"):
            host.kill()
            host.start_node()


def run_soak(minutes: float, record: Path) -> None:
    """An undisturbed run, the same one under faults for about so many minutes, and what the second lost.

    Each event is appended to the record as a line of JSON when it happens; the last one has all figures.
    """
    begun = datetime.now(UTC).isoformat(timespec="seconds")

    def note(event: str, **values: Any) -> None:
        line = json.dumps({"soak": begun, "event": event} | values)
        print(line, flush=True)
        with record.open("a") as file:
            file.write(line + "\n")

    with (
        tempfile.TemporaryDirectory(prefix="pixelcnn-soak-") as folder,
        cluster_of_hosts(Path(folder), free_number()) as hosts,
    ):
        note("begun", minutes=minutes, machine=machine())
        speed = (TRIAL_STEPS - LOG_INTERVAL) / left_alone(hosts, "trial", TRIAL_STEPS)
        steps = max(200, int(round(minutes * 60 * speed * SHARE_OF_TRAINING, -2)))
        note("speed", steps_a_second=round(speed, 2), steps=steps)
        alone = left_alone(hosts, "undisturbed", steps)
        require_whole_run(hosts, steps)
        note("undisturbed", seconds=round(alone, 1))
        result = soak(hosts, soak_words("soak", 1, steps), 0, note)
        note("ended", status=result.job.process.returncode, last_line=result.job.lines[-1][1])
        assert result.job.process.returncode == 0, result.job.told
        compared = against(hosts, "s3://bucket/runs", "soak", "undisturbed", steps)
        ends = {f"{name}_last_loss": losses_of(hosts, name)[-1][1] for name in ("undisturbed", "soak")}
        note("result", **figures(result, alone, steps), **ends, **dataclasses.asdict(compared))


def soak_words(name: str, min_workers: int, steps: int) -> list[str]:
    """The command of a run with a checkpoint every 50 steps."""
    return words_for(name, min_workers, "s3://bucket/runs", steps, LOG_INTERVAL, 50)


def left_alone(hosts: Hosts, name: str, steps: int) -> float:
    """Seconds from the first line to the last of a run that is left alone, and that all its workers do."""
    job = hosts[0].job(*soak_words(name, 0, steps))
    job.must_end(7200)
    (first, _), *_, (last, _) = job.steps()
    return last - first


def figures(result: Soak, alone: float, steps: int) -> dict[str, Any]:
    """What the faults cost, and both ratios of the undisturbed run's time to the struck one's."""
    (first, _), *_, (last, _) = result.job.steps()
    restarts = result.restarts()
    gaps, seconds = sum(after - before for before, after, _ in restarts), last - first
    return {
        "minutes": round(seconds / 60, 1),
        "faults": len(result.faults),
        "of_each": dict(sorted(Counter(result.faults).items())),
        "restarts": len(restarts),
        "seconds_of_restarts": round(gaps, 1),
        "steps": steps,
        "steps_repeated": sum(lost for _, _, lost in restarts),
        "undisturbed_seconds": round(alone, 1),
        "ratio_of_all_time": round(alone / seconds, 3),
        "ratio_net_of_restarts": round(alone / (seconds - gaps), 3),
    }
