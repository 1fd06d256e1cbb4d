"""Searches as a person starts them: trials that are stopped, killed or out of memory, and a driver that is killed."""

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow.entities import Run

from tests.conftest import PATIENCE, wait_until
from tests.host import Job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def words_for(root: Path, workers: int, steps: int, scheduler: str, *space: str) -> list[str]:
    overrides = {
        "data.url": f"{root}/data", "run.url": f"{root}/runs", "train.steps": steps, "train.batch-size": 32,
        "train.warmup-steps": 2, "model.head-filters": 16, "model.kernel-size": 3, "cluster.num-workers": workers,
        "search.evaluations": 4, "search.first-rung": 0.25, "search.max-concurrent-trials": 1,
        "search.scheduler": scheduler,
    }  # fmt: skip
    return ["digits", *(word for key, value in overrides.items() for word in (f"--{key}", str(value))),
            "--search.space", *space]  # fmt: skip


def records_of(root: Path) -> dict[str, dict[str, Any]]:
    files = (root / "runs/digits-search/trials").glob("*.json")
    return {file.stem: json.loads(file.read_text()) for file in files}


def gone(processes: Iterable[psutil.Process]) -> bool:
    return not any(map(lives, processes))


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_trial_that_is_stopped_early_frees_its_workers_for_the_next(
    tmp_path: Path, start_job: Callable[..., Job]
) -> None:
    """Two workers a trial on a cluster of two CPUs: the next trial can't begin on anything but freed ones."""
    # The learning rate of the later ones is too low to learn anything by the first rung.
    space = "train.learning_rate=choice(0.01,1e-6,1e-7)"
    search = start_job("jobs.search", *words_for(tmp_path, 2, 40, "asha", space))
    search.wait_for("learning_rate0.01  finished", PATIENCE)
    search.wait_for("learning_rate1e-06  25%", PATIENCE)
    workers = search.workers()
    # Ray Train's helper, which would free nothing here and never end.
    assert not search.processes("PlacementGroupCleaner")
    wait_until(lambda: gone(workers), 60, "the end of the stopped trial's workers")
    wait_until(lambda: bool(search.workers()), PATIENCE, "the next trial's workers")
    search.must_end(240)
    records = records_of(tmp_path)
    assert {name: record["state"] for name, record in records.items()} == {
        "learning_rate0.01": "finished", "learning_rate1e-06": "stopped early", "learning_rate1e-07": "stopped early",
    }  # fmt: skip
    assert [len(records[name]["reports"]) for name in sorted(records)] == [4, 1, 1]
    assert "best: learning_rate0.01; train it with `python -m jobs.train --config" in search.told
    _require_nested_runs()


def runs_by_name() -> dict[str, Run]:
    """MLflow's runs by their names, of which each has one."""
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("pixelcnn-ray").experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert len(found) == len(runs)
    return runs


def _require_nested_runs() -> None:
    runs = runs_by_name()
    parent = runs.pop("digits-search")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {name: (run.data.tags["stopped_early"], run.info.status) for name, run in runs.items()} == {
        "learning_rate0.01": ("false", "FINISHED"), "learning_rate1e-06": ("true", "FINISHED"),
        "learning_rate1e-07": ("true", "FINISHED"),
    }  # fmt: skip
    there = {artifact.path for artifact in mlflow.MlflowClient().list_artifacts(parent.info.run_id, "search")}
    assert there == {"search/table.md", "search/pareto.png", "search/best.json"}
    assert parent.info.status == "FINISHED"


def test_killed_trials_killed_drivers_and_trials_without_memory(
    tmp_path: Path, start_job: Callable[..., Job], run_job: Callable[..., tuple[int, str]]
) -> None:
    # 60,000 filters ask for more than 100 GB in one piece, which the host refuses.
    words = words_for(tmp_path, 1, 200, "none", "model.num_filters=choice(60000,8,4,2)")
    search = start_job("jobs.search", *words)
    search.wait_for("filters60000  out of memory", 240)
    search.wait_for("filters8  25%", 240)
    workers, (driver,) = search.workers(), search.processes("ImplicitFunc")
    driver.kill()
    wait_until(lambda: gone(workers), 60, "the end of the workers whose trial was killed")
    search.wait_for("filters8  failed", 120)
    assert runs_by_name()["filters8"].info.status == "FAILED"
    search.wait_for("filters4  finished", 240)
    before = records_of(tmp_path)["filters4"]
    search.wait_for("filters2  25%", 240)
    search.process.kill()
    search.process.wait()
    status, told = run_job("jobs.search", *words)
    assert status == 0, told
    records = records_of(tmp_path)
    assert records["filters4"] == before
    assert "filters4  " not in told.split("| rank")[0]
    assert "filters2  25%" not in told
    assert {name: record["state"] for name, record in records.items()} == {
        "filters60000": "out of memory", "filters8": "finished", "filters4": "finished", "filters2": "finished",
    }  # fmt: skip
    assert {name: run.info.status for name, run in runs_by_name().items()} == {
        "digits-search": "FINISHED", "filters60000": "FAILED", "filters8": "FINISHED", "filters4": "FINISHED",
        "filters2": "FINISHED",
    }  # fmt: skip
    measured = {name: [report["progress"] for report in record["reports"]] for name, record in records.items()}
    assert measured.pop("filters60000") == []
    assert measured.pop("filters4") == [25, 50, 75, 100]
    # Of what workers measure between their driver's death and their own nobody tells the search.
    for progress in measured.values():
        assert progress == sorted(set(progress))
        assert (progress[0], progress[-1]) == (25, 100)


def test_a_weak_member_goes_on_from_a_strong_one(tmp_path: Path, run_job: Callable[..., tuple[int, str]]) -> None:
    # So many steps that members whose starts are seconds apart train at the same time.
    words = words_for(tmp_path, 1, 320, "pbt", "train.learning_rate=loguniform(1e-6,1e-2)")
    words[words.index("--search.max-concurrent-trials") + 1] = "2"
    words += ["--search.searcher", "random", "--search.num-trials", "2", "--search.perturbation-interval", "0.25"]
    status, told = run_job("jobs.search", *words)
    assert status == 0, told
    change = re.search(r"(member\d)  goes on from another member's checkpoint: train.learning_rate \S+ -> (\S+)", told)
    assert change
    records = records_of(tmp_path)
    assert {record["state"] for record in records.values()} == {"finished"}
    # Who goes on from a checkpoint further ahead is never measured at the steps between, and nobody twice at one.
    changed = set(re.findall(r"(member\d)  goes on from another member's checkpoint", told))
    for name, record in records.items():
        progress = [report["progress"] for report in record["reports"]]
        assert progress == sorted(set(progress))
        assert (progress[0], progress[-1]) == (25, 100)
        assert name in changed or progress == [25, 50, 75, 100]
    assert records[change.group(1)]["reports"][-1]["bits_per_dim"] < 3.5
    newest = max((tmp_path / "runs/digits-search" / change.group(1)).glob("step-*"))
    trained = json.loads((newest / "checkpoint.json").read_text())["config"]["train"]["learning_rate"]
    assert trained == records[change.group(1)]["values"]["train.learning_rate"]
    for name, run in runs_by_name().items():
        if name in records:
            history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/bits_per_dim")
            steps = [metric.step for metric in history]
            assert steps == sorted(set(steps))
            assert (steps[0], steps[-1]) == (80, 320)
            assert name in changed or steps == [80, 160, 240, 320]
