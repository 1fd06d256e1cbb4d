"""A run on three hosts, struck, goes on and ends with the same model; benchmarks/faults.py has more rows and seeds."""

import re
from collections.abc import Iterator

import mlflow
import pytest

from benchmarks.fault_kinds import KINDS, mend
from benchmarks.fault_runs import difference, losses_of, weights_of, words_for
from benchmarks.faults import CHECKPOINT_INTERVAL, STEPS, three_nodes, trial, undisturbed
from tests.conftest import BIN
from tests.host import DASHBOARD_PORT, Job
from tests.hosts import Hosts, cluster_of_hosts, free_number, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ROUNDING = 2e-3
"""Bound of what rounding does to a weight in STEPS steps when the number of workers changes."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts and a spare one, and a run on them that was left alone."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with cluster_of_hosts(tmp_path_factory.mktemp("hosts"), free_number(), count=3, spare=1) as made:
        undisturbed(made, STEPS, 1, CHECKPOINT_INTERVAL)
        yield made


@pytest.fixture
def three(hosts: Hosts) -> Hosts:
    """The three hosts, whatever the test before did to them."""
    mend(hosts)
    three_nodes(hosts)
    return hosts


@pytest.mark.parametrize(
    ("name", "steps_lost"),
    [
        ("SIGKILL of a worker", CHECKPOINT_INTERVAL + 5),
        ("SIGSTOP of a worker", CHECKPOINT_INTERVAL + 5),
        ("SIGKILL of a raylet, not replaced", CHECKPOINT_INTERVAL + 5),
        ("link down for 5 s", 0),
        ("drain with a 15 s deadline", 0),
        ("SIGKILL of the head's host", CHECKPOINT_INTERVAL + 5),
        ("storage answers 503 for 20 s", 0),
        ("disk full", 2 * CHECKPOINT_INTERVAL + 5),
    ],
)
def test_a_struck_run_ends_with_the_same_model(three: Hosts, name: str, steps_lost: int) -> None:
    number, fault = next((number, fault) for number, fault in enumerate(KINDS) if fault.name == name)
    outcome = trial(three, fault, 0, number)
    assert outcome.steps_lost <= steps_lost
    assert (outcome.missing_images, outcome.double_images) == (0, 0)
    assert (outcome.missing_metrics, outcome.double_metrics) == (0, 0)
    assert outcome.weights_difference <= (ROUNDING if fault.min_workers else 0.0)
    assert outcome.loss_difference <= (1e-3 if fault.min_workers else 0.0)
    assert outcome.restarted is (name not in ("link down for 5 s", "storage answers 503 for 20 s"))
    if name == "disk full":
        assert outcome.status == 1
        assert re.search(r"error: .*the disk is full; .*the last sound checkpoint is .*/step-\d{9}$", outcome.message)


def test_a_stopped_job_has_kept_its_step_and_the_same_command_goes_on(three: Hosts) -> None:
    """`ray job stop` of a submitted job: KILLED in MLflow, no step lost, one run."""
    words = ["jobs.train", *words_for("stopped", 0, "s3://bucket/runs", STEPS, 1, 1000)[1:]]
    address = ["--address", f"http://{three[0].address}:{DASHBOARD_PORT}"]
    submitted = three[0].start(
        BIN / "ray", "job", "submit", *address, "--submission-id", "to-stop", "--working-dir", ".", "--",
        "python", "-u", "-m", *words, PYTHONUNBUFFERED="1",
    )  # fmt: skip
    job = Job(submitted)  # `ray job submit` prints the job's lines, and succeeds where it is stopped, too
    job.wait_for_step(20)
    stopped = three[0].start(BIN / "ray", "job", "stop", *address, "to-stop")
    told, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 0, told
    job.must_end(120)
    match = re.search(r"stopped after step (\d+)", job.told)
    assert match, job.told
    assert status_of(three, "stopped") == "KILLED"
    again = three[0].job(*words)
    assert again.end() == 0, again.told
    assert f"going on from s3://bucket/runs/stopped/step-{int(match.group(1)):09d}" in again.told
    assert status_of(three, "stopped") == "FINISHED"
    assert [step for step, _ in losses_of(three, "stopped")] == list(range(1, STEPS + 1))
    same = weights_of(three, "s3://bucket/runs", "undisturbed", STEPS)
    assert difference(weights_of(three, "s3://bucket/runs", "stopped", STEPS), same) == 0.0


def status_of(hosts: Hosts, name: str) -> str:
    client = mlflow.MlflowClient(hosts.mlflow_uri)
    experiment = client.get_experiment_by_name("pixelcnn-ray")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return str(run.info.status)


def test_the_doctor_passes_a_sound_cluster_and_names_what_is_not(three: Hosts) -> None:
    words = words_for("undisturbed", 0, "s3://bucket/runs", STEPS, 1, CHECKPOINT_INTERVAL)
    words = ["jobs.doctor", *words[1:]]
    healthy = three[0].job(*words)
    assert healthy.end() == 0, healthy.told
    exchanged = re.search(r"^(pass|warn)  all-reduce +([\d.]+) GB/s by 3 workers", healthy.told, re.MULTILINE)
    assert exchanged, healthy.told
    verdict, speed = exchanged.group(1), float(exchanged.group(2))  # which is the machine's
    assert speed >= 0.1 if verdict == "pass" else speed <= 0.1
    assert re.search(
        r"^warn  shards +2 shards of train for 3 workers  -> prepare with fewer", healthy.told, re.MULTILINE
    )
    assert "fail" not in healthy.told
    ill = three[0].job(*words, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert ill.end() == 1
    assert re.search(r"^fail  MLflow .*http://127.0.0.1:9 can't be reached.*-> set MLFLOW_TRACKING_URI", ill.told, re.M)
    assert ill.told.splitlines()[-1] == "error: 1 of 10 checks failed: MLflow"
