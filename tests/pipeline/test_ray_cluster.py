"""Where a run's driver says that it is, and a cluster that does not come up."""

import json
import socket
import subprocess

import pytest

from pipeline.errors import UserError
from pipeline.ray_cluster import AUTH_VARIABLES, driver_tags, ray, start_cluster

SUBMITTED = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_7", "job_name": "a"}})


@pytest.mark.parametrize(
    ("variables", "cluster", "job"),
    [
        ({}, "local", "none"),
        ({"PIXELCNN_CLUSTER": "ours"}, "local", "none"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "10.0.0.1:6379", "none"),
        ({"RAY_ADDRESS": "auto"}, f"auto on {socket.gethostname()}", "none"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_JOB_CONFIG_JSON_ENV_VAR": SUBMITTED}, "10.0.0.1:6379", "raysubmit_7"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "PIXELCNN_CLUSTER": "ours"}, "ours", "none"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_CLUSTER_NAME": "kube"}, "kube", "none"),
    ],
)
def test_cluster_and_job_are_what_an_engineer_would_filter_by(
    variables: dict[str, str], cluster: str, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*AUTH_VARIABLES, "PIXELCNN_CLUSTER", "RAY_CLUSTER_NAME", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert driver_tags() == {"cluster": cluster, "ray_job_id": job}


@pytest.mark.parametrize(("error", "tries"), [(Exception("timed out\nin Ray"), 3), (RuntimeError("no memory"), 1)])
def test_a_cluster_that_does_not_come_up_is_told_after_its_tries(
    error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tried anew where Ray raises Exception itself, which it does where its processes were not up in time."""
    left: list[subprocess.Popen[bytes]] = []

    def init(**words: object) -> None:
        assert all(process.poll() is not None for process in left)
        left.append(subprocess.Popen(["sleep", "60"]))
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=rf"{str(error).splitlines()[0]}.*memory, disk and load$") as told:
        start_cluster(1)
    assert len(left) == tries
    assert ("3 times" in str(told.value)) == (tries == 3)
    said = capsys.readouterr().out
    assert said.count("warning: Ray did not come up, try") == (tries if tries > 1 else 0)
    assert said.count(": timed out\n") == said.count("\n")
    for process in left[-1:]:
        process.kill()
        process.wait()
