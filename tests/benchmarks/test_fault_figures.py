"""What the faults' benchmark counts, by hand-made runs whose faults are known."""

from pathlib import Path

import pytest

from benchmarks.counted_training import images_by_step, missing_and_double, require_whole_epochs
from benchmarks.fault_kinds import KINDS
from benchmarks.fault_record import MARKS, Outcome, add, outcomes_in, put_into, table
from benchmarks.faults import cost
from benchmarks.soak import Soak, figures
from tests.host import Job

LEFT_ALONE = {1: ["a", "b"], 2: ["c", "d"], 3: ["b", "a"], 4: ["d", "c"]}


def test_of_a_step_taken_twice_the_last_group_counts(tmp_path: Path) -> None:
    """The first group of two took steps 1 to 3, and one rank of it 4; the second one went on alone after step 2."""
    (tmp_path / "10.0.0.1-70 000").write_text("1 100 a\n2 101 c\n3 102 x\n4 109 y\n")
    (tmp_path / "10.0.0.1-70 001").write_text("1 100 b\n2 101 d\n3 102 x\n")
    (tmp_path / "10.0.0.2-71 000").write_text("3 108 b a\n4 110 d c\n")
    assert images_by_step(tmp_path) == LEFT_ALONE


def test_missing_and_double_images_are_counted_by_step() -> None:
    assert missing_and_double(LEFT_ALONE, LEFT_ALONE) == (0, 0)
    assert missing_and_double(LEFT_ALONE | {2: ["c"]}, LEFT_ALONE) == (1, 0)
    assert missing_and_double(LEFT_ALONE | {2: ["c", "d", "d"]}, LEFT_ALONE) == (0, 1)
    assert missing_and_double(LEFT_ALONE | {2: ["c", "a"]}, LEFT_ALONE) == (1, 1)
    assert missing_and_double({1: ["a", "b"]}, LEFT_ALONE) == (6, 0)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({1: ["a", "b"], 3: ["c", "d"]}, "steps are missing"),
        ({1: ["a", "b"], 2: ["c", "a"]}, "double in the epoch from image 0 on"),
        ({1: ["a", "b"], 2: ["c", "d"], 3: ["e", "a"]}, "other images"),
    ],
)
def test_a_run_that_is_no_yardstick_is_refused(found: dict[int, list[str]], why: str) -> None:
    require_whole_epochs(LEFT_ALONE, 4)
    with pytest.raises(AssertionError, match=why):
        require_whole_epochs(found, 4)


def lines_of(*told: tuple[float, str]) -> list[tuple[float, str]]:
    return [(when, f"step {text}/9  images" if text.isdigit() else text) for when, text in told]


def test_cost_of_a_restart_and_of_a_pause() -> None:
    lost = (5, "worker 0 was lost (killed)")
    lines = lines_of((1, "1"), (2, "2"), (3, "3"), lost, (10, "going on from s3://b/step-2"), (11, "3"), (12, "4"))
    assert cost(lines, 3.5, 3.5) == {
        "restarted": True, "steps_lost": 1, "seconds_to_next_step": 7.5, "seconds_lost": 8.5,
        "seconds_to_notice": 1.5, "seconds_to_group": 5,
    }  # fmt: skip
    pause = cost(lines_of((1, "1"), (2, "2"), (8, "3"), (9, "4")), 2.5, 2.5)
    assert pause == {"restarted": False, "seconds_to_next_step": 6, "seconds_lost": 6}


def test_ratios_with_and_without_the_restarts() -> None:
    """10 s of 40 lie between a group's last line and the next one's first; alone it took 24 s."""
    told = [(0, "1"), (10, "2"), (12, "going on from s3://b/step-1"), (20, "2"), (40, "3")]
    job = object.__new__(Job)
    job.lines = lines_of(*told)
    found = figures(Soak(job, ["kill_worker"]), 24.0, 3)
    assert (found["restarts"], found["seconds_of_restarts"], found["steps_repeated"]) == (1, 10, 1)
    assert (found["ratio_of_all_time"], found["ratio_net_of_restarts"]) == (0.6, 0.8)


def test_a_record_goes_on_and_its_table_tells_what_failed(tmp_path: Path) -> None:
    record, fault = tmp_path / "faults.jsonl", KINDS[0].name
    assert outcomes_in(record) == []
    add(record, Outcome(fault, 0, step=40, restarted=True, steps_lost=3, seconds_to_next_step=14.2, missing_images=2))
    add(record, Outcome(fault, 1, step=77, restarted=True, steps_lost=9, seconds_to_next_step=31.0))
    add(record, Outcome(fault, 2, failure="AssertionError: not ended within 400 s:\nstep 3"))
    told = table(outcomes_in(record))
    assert f"| {fault} | 3 | 2 of 3 | 40, 77 | by itself | 3 to 9 | 14.2 to 31.0 |  | 0.0 |" in told
    assert "| 2, 0 | 0, 0 |" in told
    assert f"\n- {fault}, seed 2: AssertionError: not ended within 400 s:\n" in told
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for _ in range(2):
        put_into(page, outcomes_in(record))
        assert page.read_text() == f"before\n{MARKS[0]}\n{told}\n{MARKS[1]}\nafter\n"
