"""What became of a search's trials: a small file each, and the table, plot and best configuration made of them."""

from typing import Any, Literal

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict

from pipeline.clock import clock
from pipeline.markdown import markdown_table
from pipeline.plot import figure_png
from pipeline.storage import MissingObjectError, join, names_below, read, write

TrialState = Literal["running", "finished", "stopped early", "out of memory", "failed"]
ENDED = ("finished", "stopped early", "out of memory")
"""States that the same command doesn't repeat."""


class Report(BaseModel):
    """Where a trial stood at an evaluation."""

    model_config = ConfigDict(frozen=True)

    bits_per_dim: float
    images_seen: float
    pflop: float
    """PFLOP (1e15) spent."""
    progress: float
    """Percent of the trial's budget."""


class TrialRecord(BaseModel):
    """What became of a trial."""

    name: str
    number: int
    """Order in which trials began."""
    values: dict[str, Any]
    gflop_per_image: float
    """GFLOP (1e9) that training spends on an image."""
    reports: list[Report] = []
    seconds: float = 0.0
    state: TrialState = "running"
    error: str = ""

    @property
    def last(self) -> Report | None:
        """The newest report."""
        return self.reports[-1] if self.reports else None

    def save(self, url: str) -> None:
        """Keep the record in the search's folder."""
        write(record_url(url, self.name), self.model_dump_json(indent=1).encode())


def record_url(url: str, name: str) -> str:
    """Where a search keeps a trial's record."""
    return join(url, "trials", f"{name}.json")


def load_record(url: str, name: str) -> TrialRecord | None:
    """A trial's record, None where it has none."""
    try:
        return TrialRecord.model_validate_json(read(record_url(url, name)))
    except MissingObjectError:
        return None


def load_records(url: str) -> list[TrialRecord]:
    """All records of a search in the order in which the trials began."""
    folder = join(url, "trials")
    records = [TrialRecord.model_validate_json(read(join(folder, name))) for name in names_below(folder)]
    return sorted(records, key=lambda record: record.number)


def ranked(records: list[TrialRecord]) -> list[TrialRecord]:
    """The best first: finished ones by bits/dim, then the others with a measure, then those without."""

    def order(record: TrialRecord) -> tuple[bool, bool, float, int]:
        last = record.last
        return (record.state != "finished", last is None, last.bits_per_dim if last else 0.0, record.number)

    return sorted(records, key=order)


def table(records: list[TrialRecord]) -> str:
    """A line a trial, the best first, in columns that are Markdown as well."""
    rows = [("rank", "configuration", "bits/dim", "images seen", "PFLOP", "time", "state")]
    for rank, record in enumerate(ranked(records), 1):
        last = record.last
        told = (f"{last.bits_per_dim:.4f}", f"{last.images_seen:,.0f}", f"{last.pflop:.4g}") if last else ("-",) * 3
        rows.append((str(rank), record.name, *told, clock(record.seconds), record.state))
    return markdown_table(rows)


def pareto_front(records: list[TrialRecord]) -> list[TrialRecord]:
    """Finished trials that no other beats in bits/dim without costing more FLOPs an image, the cheapest first."""
    front: list[TrialRecord] = []
    finished = [record for record in records if record.state == "finished" and record.last]
    for record in sorted(finished, key=lambda one: (one.gflop_per_image, one.reports[-1].bits_per_dim)):
        if not front or record.reports[-1].bits_per_dim < front[-1].reports[-1].bits_per_dim:
            front.append(record)
    return front


def pareto_png(records: list[TrialRecord]) -> bytes:
    """A plot of bits/dim over FLOPs an image: every trial, and the front of the finished ones."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for state, marker in (("finished", "o"), ("stopped early", "x"), ("failed", "v"), ("out of memory", "v")):
        shown = [record for record in records if record.state == state and record.last]
        if shown:
            bits = [record.reports[-1].bits_per_dim for record in shown]
            axes.scatter([record.gflop_per_image for record in shown], bits, marker=marker, label=state)
    front = pareto_front(records)
    bits = [record.reports[-1].bits_per_dim for record in front]
    axes.plot([record.gflop_per_image for record in front], bits, label="Pareto front")
    for record, value in zip(front, bits, strict=True):
        axes.annotate(record.name, (record.gflop_per_image, value), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("training GFLOP an image")
    axes.set_ylabel("bits/dim on the validation split")
    axes.legend()
    return figure_png(figure)
