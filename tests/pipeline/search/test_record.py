from pathlib import Path

from pipeline.search.record import (
    Report,
    TrialRecord,
    TrialState,
    load_record,
    load_records,
    ranked,
    table,
)


def record(
    name: str, number: int, bits: float | None, gflop: float = 1.0, state: TrialState = "finished"
) -> TrialRecord:
    reports = [] if bits is None else [Report(bits_per_dim=bits, images_seen=6400, pflop=0.5, progress=100)]
    return TrialRecord(
        name=name, number=number, values={}, gflop_per_image=gflop, reports=reports, seconds=75, state=state
    )


RECORDS = [
    record("early", 0, 3.0, 2.0, "stopped early"),
    record("large", 1, None, 9.0, "out of memory"),
    record("worse", 2, 4.5, 2.0),
    record("best", 3, 4.0, 3.0),
    record("cheap", 4, 4.2, 1.0),
]


def test_finished_trials_rank_first_then_those_with_a_measure() -> None:
    assert [one.name for one in ranked(RECORDS)] == ["best", "cheap", "worse", "early", "large"]


def test_the_table_has_a_line_a_trial() -> None:
    lines = table(RECORDS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "1", "best", "4.0000", "6,400", "0.5", "0:01:15", "finished",
    ]  # fmt: skip
    assert "out of memory" in lines[-1]


def test_records_come_back_in_the_order_in_which_trials_began(tmp_path: Path) -> None:
    for one in reversed(RECORDS):
        one.save(str(tmp_path))
    assert load_records(str(tmp_path)) == RECORDS
    assert load_record(str(tmp_path), "best") == RECORDS[3]
    assert load_record(str(tmp_path), "absent") is None
