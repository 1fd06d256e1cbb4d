"""What faults cost a run on three hosts: `python -m benchmarks.faults matrix --seeds 2`, `... soak --minutes 30`.

Needs root and iproute2. Prints the Markdown tables of docs/reliability.md; every figure is of the runs that it makes.
"""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.fault_kinds import KINDS, Fault, mend
from benchmarks.soak import run_soak
from tests.host import Job
from tests.hosts import Hosts, cluster_of_hosts, why_not

STEPS, CHECKPOINT_INTERVAL, BATCH = 160, 20, 64
RIG = 40


@dataclass(frozen=True)
class Outcome:
    """What one fault at one step did."""

    fault: Fault
    step: int
    status: int
    steps_lost: int
    restarted: bool
    seconds_to_next_step: float
    seconds_lost: float
    weights_difference: float
    loss_difference: float
    missing_metrics: int
    double_metrics: int
    message: str


def words_for(name: str, min_workers: int, run_url: str, steps: int, log_interval: int, interval: int) -> list[str]:
    """The command of a run: three workers, a batch that three don't divide."""
    values = {
        "model.num-layers": 4, "model.num-filters": 24, "model.kernel-size": 5, "model.head-filters": 32,
        "model.dropout": 0.1, "data.url": "s3://bucket/data", "run.url": run_url, "run.name": name,
        "train.steps": steps, "train.batch-size": BATCH, "train.warmup-steps": 20, "run.log-interval": log_interval,
        "run.eval-interval": steps, "run.sample-interval": 10 * steps, "run.checkpoint-interval": interval,
        "cluster.num-workers": 3, "cluster.min-workers": min_workers, "cluster.hang-seconds": 15,
        "tracking.patience-seconds": 180,
    }  # fmt: skip
    return ["jobs.train", "digits", *(word for key, value in values.items() for word in (f"--{key}", str(value)))]


def weights_of(hosts: Hosts, url: str, name: str, steps: int) -> dict[str, Tensor]:
    """Final weights of a run."""
    root = hosts.folder / "s3" / url.removeprefix("s3://") if url.startswith("s3://") else Path(url)
    return load_file(root / name / f"step-{steps:09d}" / "weights.safetensors")


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of any weight; 0.0 only if all bits are equal."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def losses_of(hosts: Hosts, name: str) -> list[tuple[int, float]]:
    """Steps and training losses that MLflow has of a run."""
    client = mlflow.MlflowClient(hosts.mlflow_uri)
    experiment = client.get_experiment_by_name("pixelcnn-ray")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    history = client.get_metric_history(run.info.run_id, "train/bits_per_dim")
    return [(metric.step, metric.value) for metric in history]


def undisturbed(hosts: Hosts, steps: int, log_interval: int, interval: int) -> tuple[Job, float]:
    """A run that is left alone, and its seconds a step."""
    job = hosts[0].job(*words_for("undisturbed", 0, "s3://bucket/runs", steps, log_interval, interval))
    assert job.end(3600) == 0, job.told
    told = job.steps()
    (first, first_step), (last, last_step) = told[0], told[-2]  # the last line is of the evaluation
    return job, (last - first) / (last_step - first_step)


def trial(hosts: Hosts, fault: Fault, seed: int, number: int) -> Outcome:
    """One fault at a random step of a run, to the run's end."""
    rng = random.Random(seed * 1000 + number)
    step, name = rng.randrange(30, 110), f"{number}-{seed}"
    run_url = str(hosts.disk) if fault.name == "disk full" else "s3://bucket/runs"
    words = words_for(name, fault.min_workers, run_url, STEPS, 1, CHECKPOINT_INTERVAL)
    job = hosts[0].job(*words)
    job.wait_for_step(step)
    struck = time.monotonic()
    struck = fault.strike(hosts, job, rng) or struck
    lines, status, message = job.lines, -1, ""
    if fault.goes_on == "by the same command":
        status = job.end(180)
        message = job.lines[-1][1]
        ready(hosts, fault)
        again = hosts[0].job(*words)
        resumed, last = time.monotonic(), again.end()
        lines = job.lines + again.lines
        job = again
    else:
        resumed, last = struck, job.end(400)
    assert last == 0, job.told
    weights = weights_of(hosts, run_url, name, STEPS)
    same = weights_of(hosts, "s3://bucket/runs", "undisturbed", STEPS)
    return judge(hosts, fault, name, step, status, struck, resumed, lines, difference(weights, same), message)


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


def judge(
    hosts: Hosts,
    fault: Fault,
    name: str,
    step: int,
    status: int,
    struck: float,
    resumed: float,
    lines: list[tuple[float, str]],
    weights_difference: float,
    message: str,
) -> Outcome:
    """Figures of a trial from its lines, its metrics and its weights."""
    told = Job.steps_in(lines)
    restarts = [when for when, line in lines if line.startswith("going on from") and when > struck]
    reached = max(number for when, number in told if when < (restarts[0] if restarts else struck))
    after = [(when, number) for when, number in told if when > (restarts[0] if restarts else struck)]
    gap = max(after[0][0] - resumed, 0.0)
    if not restarts:
        times = [when for when, _ in told if when >= struck - 2]
        gap = max(later - earlier for earlier, later in itertools.pairwise(times))
    passed = next(when for when, number in after if number > reached)
    losses, expected = losses_of(hosts, name), dict(losses_of(hosts, "undisturbed"))
    steps = [number for number, _ in losses]
    return Outcome(
        fault=fault, step=step, status=status,
        steps_lost=reached - (after[0][1] - 1) if restarts else 0,
        restarted=bool(restarts), seconds_to_next_step=gap,
        seconds_lost=passed - resumed if restarts else gap, weights_difference=weights_difference,
        loss_difference=max(abs(value - expected[number]) for number, value in losses),
        missing_metrics=len(set(expected) - set(steps)), double_metrics=len(steps) - len(set(steps)), message=message,
    )  # fmt: skip


def table(outcomes: list[Outcome]) -> str:
    """The matrix as Markdown, a row a fault with the worst of its seeds."""
    rows = [
        "| fault | runs | goes on | steps lost | back after, s | seconds lost | weights differ by | loss by |"
        " metric steps missing, double |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fault in KINDS:
        of = [outcome for outcome in outcomes if outcome.fault == fault]
        if not of:
            continue
        goes_on = fault.goes_on if of[0].restarted else "without a restart"
        cells = [
            fault.name, str(len(of)), goes_on, _range([one.steps_lost for one in of], 0),
            _range([one.seconds_to_next_step for one in of], 1), _range([one.seconds_lost for one in of], 1),
            f"{max(one.weights_difference for one in of):.1g}", f"{max(one.loss_difference for one in of):.1g}",
            f"{sum(one.missing_metrics for one in of)}, {sum(one.double_metrics for one in of)}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _range(values: list[float], decimals: int) -> str:
    low, high = f"{min(values):.{decimals}f}", f"{max(values):.{decimals}f}"
    return low if low == high else f"{low} to {high}"


def soaked_words(name: str, min_workers: int, steps: int) -> list[str]:
    """The command of the soak's run: a line every 10 steps, a checkpoint every 50."""
    return words_for(name, min_workers, "s3://bucket/runs", steps, 10, 50)


def loss_difference(hosts: Hosts, name: str, other: str) -> float:
    """Largest difference of the training losses that MLflow has of two runs at the same steps, which must be all."""
    losses, expected = losses_of(hosts, name), dict(losses_of(hosts, other))
    assert [step for step, _ in losses] == sorted(expected), "metric steps are missing or double"
    return max(abs(value - expected[step]) for step, value in losses)


def matrix(seeds: int, only: str) -> None:
    """Every fault at a random step for each seed."""
    folder = Path(tempfile.mkdtemp(prefix="pixelcnn-faults-"))
    outcomes = []
    with cluster_of_hosts(folder, RIG, count=3, spare=1) as hosts:
        _, seconds = undisturbed(hosts, STEPS, 1, CHECKPOINT_INTERVAL)
        print(f"undisturbed: {STEPS} steps, {seconds:.3f} s a step, a checkpoint every {CHECKPOINT_INTERVAL}")
        for seed, (number, fault) in itertools.product(range(seeds), enumerate(KINDS)):
            if only not in fault.name:
                continue
            if fault.needs and not hosts[0].can_be_shaped(*fault.needs):
                print(f"not done: {fault.name}: this machine's kernel has no {fault.needs[0]}")
                continue
            try:
                outcomes.append(trial(hosts, fault, seed, number))
                print(outcomes[-1], flush=True)
            except Exception as error:  # the other rows are worth having
                print(f"FAILED: {fault.name}, seed {seed}: {str(error)[-2000:]}", flush=True)
            mend(hosts)
            three_nodes(hosts)
    shutil.rmtree(folder)
    print(table(outcomes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["matrix", "soak"])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each fault")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--minutes", type=float, default=30, help="length of the soak")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(reason)
    if arguments.what == "matrix":
        matrix(arguments.seeds, arguments.only)
    else:
        run_soak(arguments.minutes, RIG + 1, soaked_words, loss_difference)
