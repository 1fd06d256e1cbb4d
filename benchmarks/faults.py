"""What faults cost a run on three hosts.

`python -m benchmarks.faults matrix --seeds 3` strikes a run with each fault at a random step for each seed, appends
each outcome to benchmarks/faults.jsonl and passes over what is there already, so the same command goes on; `table` puts
that record's table into docs/reliability.md; `soak --minutes 30` strikes one run again and again. Needs root and
iproute2.
"""

import argparse
import dataclasses
import itertools
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fault_kinds import KINDS, Fault, mend
from benchmarks.fault_record import Outcome, add, outcomes_in, put_into, table
from benchmarks.fault_runs import against, require_whole_run, words_for
from benchmarks.soak import run_soak
from benchmarks.words import count, positive
from tests.host import ROOT, Job, end
from tests.hosts import PATIENCE, Hosts, cluster_of_hosts, free_number, why_not

STEPS, CHECKPOINT_INTERVAL = 160, 20
RECORD, SOAK_RECORD = ROOT / "benchmarks" / "faults.jsonl", ROOT / "benchmarks" / "soak.jsonl"
LOST = re.compile(r"worker \d+ (leaves|was lost) ")
"""What pipeline.ray_controller tells when Ray Train has given a group up."""
PAGE = ROOT / "docs" / "reliability.md"


class NotStruckError(Exception):
    """A run did not come so far that it could be struck, which says nothing of the fault."""


def undisturbed(hosts: Hosts, steps: int, log_interval: int, interval: int) -> tuple[Job, float]:
    """A run that is left alone, and its seconds a step."""
    job = hosts[0].job(*words_for("undisturbed", 0, "s3://bucket/runs", steps, log_interval, interval))
    job.must_end(3600)
    require_whole_run(hosts, steps)
    told = job.steps()
    (first, first_step), (last, last_step) = told[0], told[-2]  # the last line is of the evaluation
    return job, (last - first) / (last_step - first_step)


def trial(hosts: Hosts, fault: Fault, seed: int, number: int) -> Outcome:
    """One fault at a random step of a run, to the run's end.

    Raises:
        NotStruckError: the run did not reach that step.
    """
    rng = random.Random(seed * 1000 + number)
    step, name, load = rng.randrange(30, 110), f"{number}-{seed}", os.getloadavg()[0]
    run_url = str(hosts.disk) if fault.name == "disk full" else "s3://bucket/runs"
    words = words_for(name, fault.min_workers, run_url, STEPS, 1, CHECKPOINT_INTERVAL)
    jobs = [hosts[0].job(*words)]
    try:
        try:
            jobs[0].wait_for_step(step, PATIENCE)
        except AssertionError as error:
            raise NotStruckError(f"before it was struck: {error}") from error
        struck = time.monotonic()
        struck = resumed = fault.strike(hosts, jobs[0], rng) or struck
        if fault.goes_on == "by the same command":
            jobs[0].end(PATIENCE)
            ready(hosts, fault)
            jobs.append(hosts[0].job(*words))
            resumed = time.monotonic()
        jobs[-1].must_end(2 * PATIENCE)
    finally:
        for job in jobs:
            if job.process.poll() is None:
                end(job.process)
    return Outcome(
        fault=fault.name, seed=seed, step=step, load=round(load, 2),
        **cost([line for job in jobs for line in job.lines], struck, resumed),
        **dataclasses.asdict(against(hosts, run_url, name, "undisturbed", STEPS)),
        status=jobs[0].process.returncode if len(jobs) > 1 else 0,
        message=jobs[0].lines[-1][1] if len(jobs) > 1 else "",
    )  # fmt: skip


def ready(hosts: Hosts, fault: Fault) -> None:
    """Mend what the person would before the same command."""
    mend(hosts)
    if fault.name == "credentials revoked":
        hosts.stop_s3()
        hosts.start_s3()
    three_nodes(hosts)


def three_nodes(hosts: Hosts) -> None:
    """Start nodes until there are three, the head first; more than three are ended."""
    alive = hosts.alive() if hosts[0].node else []
    for host in reversed(hosts.hosts[1:]):
        if host.node and host.address not in alive:
            host.kill()
        if sum(bool(one.node) for one in hosts.hosts) > 3 and host.node:
            host.kill()
    for host in hosts.hosts:
        if not host.node and sum(bool(one.node) for one in hosts.hosts) < 3:
            host.start_node()
            if host.number == 0:
                hosts.wait_for_head()
    hosts.wait_for_nodes(3)


def cost(lines: list[tuple[float, str]], struck: float, resumed: float) -> dict[str, Any]:
    """Steps and seconds that a run lost by what was done to it at a time, by its lines and their times.

    Args:
        lines: of the run's drivers, one after the other.
        struck: when the fault began.
        resumed: from when on seconds count; where a person goes on by the same command, when that was given.
    """
    told = Job.steps_in(lines)
    restarts = [when for when, line in lines if line.startswith("going on from") and when > struck]
    if not restarts:
        times = [when for when, _ in told if when >= struck - 2]
        gap = max(later - earlier for earlier, later in itertools.pairwise(times))
        return {"restarted": False, "seconds_to_next_step": gap, "seconds_lost": gap}
    reached = max(number for when, number in told if when < restarts[0])
    after = [(when, number) for when, number in told if when > restarts[0]]
    passed = next(when for when, number in after if number > reached)
    given_up = [when for when, line in lines if resumed <= when <= restarts[0] and LOST.match(line)]
    noticed = given_up[0] if given_up else resumed
    return {
        "restarted": True, "steps_lost": reached - (after[0][1] - 1),
        "seconds_to_next_step": max(after[0][0] - resumed, 0.0), "seconds_lost": passed - resumed,
        "seconds_to_notice": noticed - resumed, "seconds_to_group": restarts[0] - noticed,
    }  # fmt: skip


def tried(hosts: Hosts, fault: Fault, seed: int, number: int) -> Outcome | None:
    """The trial's outcome, if only how it failed; None where the run was not struck, so that it is tried anew."""
    try:
        return trial(hosts, fault, seed, number)
    except NotStruckError as error:
        print(f"not done: {fault.name}, seed {seed}: {error}", flush=True)
        return None
    except Exception as error:  # the other rows are worth having
        return Outcome(fault.name, seed, failure=f"{type(error).__name__}: {str(error)[-4000:]}")


def matrix(seeds: int, only: str, record: Path) -> None:
    """Every fault at a random step for each seed, but for what the record has."""
    done = {(outcome.fault, outcome.seed) for outcome in outcomes_in(record)}
    every = itertools.product(range(seeds), enumerate(KINDS))
    wanted = [
        (seed, number, fault)
        for seed, (number, fault) in every
        if only in fault.name and (fault.name, seed) not in done
    ]
    print(f"{len(wanted)} runs to do, {len(done)} in {record}", flush=True)
    if not wanted:
        return
    with (
        tempfile.TemporaryDirectory(prefix="pixelcnn-faults-") as folder,
        cluster_of_hosts(Path(folder), free_number(), count=3, spare=1) as hosts,
    ):
        _, seconds = undisturbed(hosts, STEPS, 1, CHECKPOINT_INTERVAL)
        print(f"undisturbed: {STEPS} steps, {seconds:.3f} s a step, a checkpoint every {CHECKPOINT_INTERVAL}")
        for seed, number, fault in wanted:
            if fault.needs and not hosts[0].can_be_shaped(*fault.needs):
                print(f"not done: {fault.name}: this machine's kernel has no {fault.needs[0]}", flush=True)
                continue
            outcome = tried(hosts, fault, seed, number)
            if outcome:
                add(record, dataclasses.replace(outcome, seconds_a_step=round(seconds, 4)))
                print(outcome, flush=True)
            mend(hosts)
            three_nodes(hosts)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["matrix", "table", "soak"])
    parser.add_argument("--seeds", type=count, default=3, help="runs of each fault")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--minutes", type=positive, default=30, help="length of the soak")
    parser.add_argument("--record", type=Path, help=f"what is written; {RECORD} and {SOAK_RECORD}")
    arguments = parser.parse_args()
    reason = why_not()
    if reason and arguments.what != "table":
        sys.exit(reason)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit("SIGTERM: the hosts are taken away"))
    if arguments.what == "soak":
        run_soak(arguments.minutes, arguments.record or SOAK_RECORD)
        return
    record = arguments.record or RECORD
    if arguments.what == "matrix":
        matrix(arguments.seeds, arguments.only, record)
    else:
        put_into(PAGE, outcomes_in(record))
    print(table(outcomes_in(record)))


if __name__ == "__main__":
    main()
