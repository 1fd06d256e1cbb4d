"""What a run is called and described by in MLflow, however often it restarts."""

import json
import os
import uuid
from dataclasses import dataclass

from pipeline.config import Config, flatten
from pipeline.manifest import Manifest, split_url
from pipeline.storage import MissingObjectError, absolute_url, is_s3, join, read, write

LONGEST_PARAM = 6000
"""Characters that MLflow takes of a param's value."""
SQLITE = "sqlite:///"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
NO_PARAM = "run.name"
"""MLflow has it as the run's name; as a param it would stand among what differs between compared runs."""


@dataclass(frozen=True)
class RunIdentity:
    """What a run is called and described by in MLflow; it travels to workers."""

    tracking_uri: str
    experiment: str
    key: str
    name: str
    run_url: str
    params: dict[str, str]
    tags: dict[str, str]
    config_json: str
    dataset: dict[str, str]
    patience_seconds: float


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file mlflow.db; either file lies from where the job was started."""
    uri = os.environ.get(URI_VARIABLE) or f"{SQLITE}mlflow.db"
    file = sqlite_file(uri)
    return f"{SQLITE}{absolute_url(file)}{uri.removeprefix(SQLITE + file)}" if file else uri


def sqlite_file(tracking_uri: str) -> str | None:
    """The file of MLflow's runs where the address is of sqlite, None for a server's."""
    path = tracking_uri.partition("?")[0]
    return path.removeprefix(SQLITE) if path.startswith(SQLITE) else None


def identify(config: Config, manifest: Manifest, run_url: str, git_commit: str) -> RunIdentity:
    """The MLflow run that belongs to a run's folder: its key stands in run.json there from the first start on."""
    key_url = join(run_url, "run.json")
    try:
        key = json.loads(read(key_url))["key"]
    except MissingObjectError:
        key = uuid.uuid4().hex
        write(key_url, json.dumps({"key": key}).encode())
    source = split_url(config, manifest.split)
    return RunIdentity(
        tracking_uri=default_tracking_uri(),
        experiment=config.tracking.experiment,
        key=key,
        name=config.run.name,
        run_url=run_url,
        params={name: str(value)[:LONGEST_PARAM] for name, value in flatten(config).items() if name != NO_PARAM},
        tags={
            "preset": config.preset,
            "data_version": manifest.version,
            "run_url": run_url,
            "mlflow.source.name": "pixelcnn-ray",
            "mlflow.source.git.commit": git_commit,
            "git_commit": git_commit,
            "stopped_early": "false",
        },
        config_json=json.dumps(config.model_dump(), indent=1),
        dataset={
            "name": f"{manifest.version}/{manifest.split}",
            "digest": manifest.digest[:36],
            "source_type": "s3" if is_s3(source) else "local",
            "source": json.dumps({"uri": source}),
            "profile": json.dumps({"num_images": manifest.num_images, "sha256": manifest.digest}),
        },
        patience_seconds=config.tracking.patience_seconds,
    )
