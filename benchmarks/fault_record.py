"""What each fault did, a line of JSON each, so that a measurement that is cut off goes on; and the table of it."""

import dataclasses
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import psutil
from pydantic import TypeAdapter

from benchmarks.fault_kinds import KINDS, Fault


@dataclass(frozen=True)
class Outcome:
    """What one fault at one step did; of one that broke the measurement only `failure` says something."""

    fault: str
    seed: int
    step: int = 0
    """After which it was done."""
    status: int = 0
    """The driver's exit status where a person has to give the command again."""
    restarted: bool = False
    steps_lost: int = 0
    """By the lines told: below 0 where the run went on from a step whose line a kill had swallowed."""
    seconds_to_next_step: float = 0.0
    seconds_lost: float = 0.0
    seconds_to_notice: float = 0.0
    """Of seconds_to_next_step: until Ray Train has given the group up, where the run goes on by itself."""
    seconds_to_group: float = 0.0
    """From then, or from the command, until the new group's rank 0 has read the checkpoint."""
    weights_difference: float = 0.0
    loss_difference: float = 0.0
    missing_images: int = 0
    double_images: int = 0
    missing_metrics: int = 0
    double_metrics: int = 0
    message: str = ""
    """The driver's last line where a person has to give the command again."""
    failure: str = ""
    seconds_a_step: float = 0.0
    """Of the run that was left alone."""
    load: float = 0.0
    """What else this machine did when the run began: its mean number of running processes in the minute before."""
    machine: str = ""
    done: str = ""
    """When, UTC."""


OUTCOME = TypeAdapter(Outcome)
MARKS = "<!-- faults: made by `python -m benchmarks.faults table` -->", "<!-- end of faults -->"


def machine() -> str:
    """Processor cores and the versions that count."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "mlflow"))
    return f"{psutil.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, {packages}"


def add(record: Path, outcome: Outcome) -> None:
    """Append an outcome, with the machine and the time."""
    done = datetime.now(UTC).isoformat(timespec="seconds")
    with record.open("a") as file:
        file.write(OUTCOME.dump_json(dataclasses.replace(outcome, machine=machine(), done=done)).decode() + "\n")


def outcomes_in(record: Path) -> list[Outcome]:
    """What has been measured before; nothing where there is no record yet."""
    return [OUTCOME.validate_json(line) for line in record.read_text().splitlines()] if record.exists() else []


def put_into(page: Path, outcomes: list[Outcome]) -> None:
    """Put the table into a page of Markdown, between the lines MARKS."""
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n{table(outcomes)}\n{MARKS[1]}{after}")


def table(outcomes: list[Outcome]) -> str:
    """The matrix as Markdown, a row a fault with the range of its seeds, what failed, and where it was measured."""
    rows = [
        "| fault | workers | runs | at steps | goes on | steps lost | back after, s | notice + new group + step |"
        " lost, s | weights | loss | images missing, double | metric steps missing, double |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fault in KINDS:
        of = [outcome for outcome in outcomes if outcome.fault == fault.name]
        if of:
            rows.append(f"| {' | '.join(_cells(fault, [one for one in of if not one.failure], len(of)))} |")
    failed = [f"{one.fault}, seed {one.seed}: {one.failure.splitlines()[0]}" for one in outcomes if one.failure]
    failures = ["", "Failed:", "", *(f"- {line}" for line in failed)] if failed else []
    return "\n".join([*rows, *failures, *(_circumstances(outcomes) if outcomes else [])])


def _circumstances(outcomes: list[Outcome]) -> list[str]:
    """When and where, and how busy the machine was with other things."""
    days, machines = {one.done[:10] for one in outcomes}, {one.machine for one in outcomes}
    loads, steps = [one.load for one in outcomes], [one.seconds_a_step for one in outcomes]
    return [
        "",
        f"{len(outcomes)} runs, {' to '.join(sorted({min(days), max(days)}))}; {'; '.join(sorted(machines))}.",
        f"A step of the run left alone took {_range(steps, 2)} s; when runs began, {_range(loads, 0)} processes on the "
        "mean wanted a core.",
    ]


def _cells(fault: Fault, of: list[Outcome], tried: int) -> list[str]:
    runs = str(tried) if len(of) == tried else f"{len(of)} of {tried}"
    workers = "1 to 3" if fault.min_workers else "3"
    if not of:
        return [fault.name, workers, runs, *[""] * 10]
    ways = sorted({fault.goes_on if one.restarted else "without a restart" for one in of})
    return [
        fault.name, workers, runs, ", ".join(str(one.step) for one in of), " or ".join(ways),
        _range([max(0, one.steps_lost) for one in of], 0), _range([one.seconds_to_next_step for one in of], 1),
        _parts([one for one in of if one.seconds_to_group]), _range([one.seconds_lost for one in of], 1),
        f"{max(one.weights_difference for one in of):.1g}",
        f"{max(one.loss_difference for one in of):.1g}",
        f"{sum(one.missing_images for one in of)}, {sum(one.double_images for one in of)}",
        f"{sum(one.missing_metrics for one in of)}, {sum(one.double_metrics for one in of)}",
    ]  # fmt: skip


def _parts(of: list[Outcome]) -> str:
    """What the time to the next step consists of, on the mean of the runs that have a restart."""
    if not of:
        return ""
    notice, group = (mean(getattr(one, name) for one in of) for name in ("seconds_to_notice", "seconds_to_group"))
    rest = mean(one.seconds_to_next_step for one in of) - notice - group
    return f"{notice:.1f} + {group:.1f} + {rest:.1f}"


def _range(values: list[float], decimals: int) -> str:
    low, high = f"{min(values):.{decimals}f}", f"{max(values):.{decimals}f}"
    return low if low == high else f"{low} to {high}"
