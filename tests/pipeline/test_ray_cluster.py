"""Where a run's driver says that it is."""

import json
import socket

import pytest

from pipeline.ray_cluster import AUTH_VARIABLES, driver_tags

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
