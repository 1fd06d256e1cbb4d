"""The fields of KubeRay's own types, v1, as its API reference of release 1.6.2 names them; all others are refused.

Kubernetes drops a field that a CRD doesn't know in silence, so a misspelt one would be lost. Pods are left to
Kubernetes' own schema.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Words = dict[str, str]
Manager = Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]


class Closed(BaseModel):
    """Types aren't converted: Kubernetes takes no "0" for a number, nor 0 for a word."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Closed):
    mode: Literal["disabled", "token"] | None = None
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Closed):
    resources: dict[str, Any] | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: dict[str, Any] | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    env: list[dict[str, Any]] | None = None
    envFrom: list[dict[str, Any]] | None = None
    volumeMounts: list[dict[str, Any]] | None = None


class Group(Closed):
    template: dict[str, Any]
    rayStartParams: Words | None = None
    resources: Words | None = None
    labels: Words | None = None


class HeadGroup(Group):
    headService: dict[str, Any] | None = None
    enableIngress: bool | None = None
    serviceType: str | None = None


class WorkerGroup(Group):
    groupName: str
    replicas: int = 0
    minReplicas: int = 0
    maxReplicas: int = 2**31 - 1
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    suspend: bool | None = None
    scaleStrategy: dict[str, list[str]] | None = None


class ClusterSpec(Closed):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: dict[str, Any] | None = None
    headServiceAnnotations: Words | None = None
    managedBy: Manager | None = None
    suspend: bool | None = None
    upgradeStrategy: dict[str, Literal["Recreate", "None"]] | None = None


class JobSpec(Closed):
    entrypoint: str = ""
    clusterSelector: Words | None = None
    rayClusterSpec: ClusterSpec | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    submitterPodTemplate: dict[str, Any] | None = None
    submitterConfig: dict[Literal["backoffLimit"], int] | None = None
    runtimeEnvYAML: str = ""
    jobId: str = ""
    metadata: Words | None = None
    backoffLimit: int = 0
    activeDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    preRunningDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)] = 0
    shutdownAfterJobFinishes: bool = False
    suspend: bool = False
    managedBy: Manager | None = None
    deletionStrategy: dict[str, Any] | None = None
    entrypointResources: str = ""
    entrypointNumCpus: float = 0
    entrypointNumGpus: float = 0


class ClusterMetadata(Closed):
    """The operator refuses longer names, as it makes those of services from them."""

    name: Annotated[Name, Field(max_length=53)]


class JobMetadata(Closed):
    name: Annotated[Name, Field(max_length=47)]


class RayCluster(Closed):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: ClusterMetadata
    spec: ClusterSpec


class RayJob(Closed):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: JobMetadata
    spec: JobSpec
