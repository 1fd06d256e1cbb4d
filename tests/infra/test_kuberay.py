"""KubeRay's manifests: what ties them to this project, and what Kubernetes and the operator take."""

import copy
import os
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pydantic
import pytest
import yaml

from tests.infra.conftest import INFRA, ROOT
from tests.infra.kuberay import RayCluster, RayJob

KUBERNETES = "1.33"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (INFRA / "kuberay").glob("*.yaml")}
CLUSTER, JOB = MANIFESTS["raycluster"], MANIFESTS["rayjob"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def containers() -> list[dict[str, Any]]:
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_ray_and_project_are_this_repositorys() -> None:
    assert f"ray[default,train,tune]=={CLUSTER['spec']['rayVersion']}" in project()["dependencies"]
    assert {container["image"] for container in containers()} == {f"pixelcnn-ray:{project()['version']}"}
    assert f"pixelcnn-ray:{project()['version']}" in (INFRA / "Dockerfile").read_text()


def test_the_token_is_on_and_no_secret_is_written_down() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    named = [entry for container in containers() for entry in container["env"] if "PASSWORD" in entry["name"]]
    assert len(named) == 2
    assert all("value" not in entry and "secretKeyRef" in entry["valueFrom"] for entry in named)


def test_workers_go_from_nothing_to_their_most_and_ask_for_gpus() -> None:
    (group,) = CLUSTER["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    assert CLUSTER["spec"]["enableInTreeAutoscaling"] is True
    for container in group["template"]["spec"]["containers"]:
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 0


def test_the_job_goes_to_that_cluster_and_names_a_job_of_ours() -> None:
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    words = JOB["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "-m"]
    assert (ROOT / f"{words[2].replace('.', '/')}.py").exists()


def test_pod_templates_are_what_kubernetes_takes() -> None:
    for group in (CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}} | group["template"]
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        pod["spec"] = pod["spec"] | {"containerz": []}
        with pytest.raises(kubernetes_validate.ValidationError, match="containerz"):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_manifests_have_the_operators_fields() -> None:
    RayCluster.model_validate(CLUSTER)
    RayJob.model_validate(JOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.workerGroupSpecs.0.minReplica", 0),
        ("spec.workerGroupSpecs.0.maxReplicas", "4"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.authOptions.mode", "on"),
        ("spec.autoscalerOptions.version", 2),
        ("spec.autoscaling", True),
        ("metadata.name", "Pixel_CNN"),
    ],
)
def test_a_field_that_the_operator_lacks_or_takes_otherwise_is_found(path: str, value: Any) -> None:
    wrong: Any = copy.deepcopy(CLUSTER)
    *above, last = path.split(".")
    place = wrong
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    with pytest.raises(pydantic.ValidationError, match=last):
        RayCluster.model_validate(wrong)


def test_what_the_operator_refuses_beyond_its_schema() -> None:
    """Its own checks: a token from Ray 2.52 on; the autoscaler's v2 said once, and of pods that aren't restarted."""
    assert tuple(map(int, CLUSTER["spec"]["rayVersion"].split("."))) >= (2, 52, 0)
    assert not [entry for container in containers() for entry in container["env"] if entry["name"].startswith("RAY_")]
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    assert {group["template"]["spec"].get("restartPolicy", "Never") for group in groups} == {"Never"}
    for group in groups:
        assert not (group.get("resources") and group["rayStartParams"].keys() & {"num-cpus", "num-gpus", "memory"})
    assert JOB["spec"].keys().isdisjoint({"backoffLimit", "suspend", "rayClusterSpec"})
    assert JOB["spec"]["submissionMode"] != "SidecarMode"


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields refused, which Kubernetes would drop in silence."""
    found = {key: closed(value) if isinstance(value, dict) else value for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize(("manifest", "crd"), [(CLUSTER, "rayclusters"), (JOB, "rayjobs")])
def test_manifests_fit_the_operators_schema(manifest: dict[str, Any], crd: str) -> None:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("the operator's CRDs are not here; set KUBERAY_CRDS to its helm-chart/kuberay-operator/crds")
    (version,) = [
        found for found in yaml.safe_load(Path(folder, f"ray.io_{crd}.yaml").read_text())["spec"]["versions"]
        if found["name"] == "v1"
    ]  # fmt: skip
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    jsonschema.validate(manifest, closed(schema))
