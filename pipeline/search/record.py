"""What became of a search's trials: a small file each, and the table made of them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.clock import clock
from pipeline.markdown import markdown_table
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
