"""The door to MLflow's model registry: runs found by name, models packed, logged and registered, aliases moved."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.mlflow_run import KEY_TAG, require_server
from pipeline.packing import pack
from pipeline.run_identity import URI_VARIABLE, RunIdentity, sqlite_file

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

SERVED = "pipeline.served_model"
LOGGED_NAME = "density"
WEIGHTS_TAG = "weights"


@dataclass(frozen=True)
class FoundRun:
    """A run as MLflow keeps it."""

    run_id: str
    run_url: str
    config_json: str


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    number: str
    tags: dict[str, str]


@dataclass(frozen=True)
class ModelFiles:
    """What of a checkpoint is served, and a request that the model answers."""

    weights: Path
    """Safetensors of the averaged weights."""
    config_json: str
    example: dict[str, list[Any]]
    """Columns of a request to draw."""
    probe: dict[str, list[Any]]
    """Columns of a request to score, which takes one forward pass: it must be answered before anything is logged."""


def find_run(tracking_uri: str, run: str) -> FoundRun:
    """The run of that id or, if only one has it, that name, over all experiments.

    Raises:
        UserError: no run, several, one that this pipeline did not track, or a server or file that is not there.
    """
    file = sqlite_file(tracking_uri)
    if file and not Path(file).exists():  # MLflow would make one, with all its tables
        raise UserError(
            f"RUN {run!r}: no preset, and no run either, as MLflow's file {file} isn't there; start where it was "
            "started, or set MLFLOW_TRACKING_URI"
        )
    with _told(tracking_uri) as client:
        import mlflow

        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        try:
            found = [client.get_run(run)]
        except mlflow.MlflowException:  # no id
            quoted = run.replace("'", "")
            found = client.search_runs(experiments, f"attributes.run_name = '{quoted}'", max_results=10)
        if len(found) != 1:
            several = f"{', '.join(one.info.run_id for one in found)} have this name; give the id of one"
            none = f"no preset, and no run of this id or name in MLflow at {tracking_uri}; correct it or the address"
            raise UserError(f"RUN {run!r}: {several if found else none}")
        run_id, tags = found[0].info.run_id, found[0].data.tags
        if "run_url" not in tags:
            raise UserError(f"RUN {run!r}: the run {run_id} has no tag run_url: it is none of jobs.train; name another")
        with tempfile.TemporaryDirectory() as folder:
            logged = Path(client.download_artifacts(run_id, "config.json", folder))
            return FoundRun(run_id, tags["run_url"], logged.read_text())


class Registry:
    """One registered model: its versions and aliases, and the runs that they come from."""

    def __init__(self, tracking_uri: str, name: str) -> None:
        self._uri, self.name = tracking_uri, name

    def run_id(self, identity: RunIdentity) -> str | None:
        """The id of the run in MLflow; None where it was never delivered."""
        with _told(self._uri) as client:
            experiment = client.get_experiment_by_name(identity.experiment)
            if experiment is None:
                return None
            found = client.search_runs(
                [experiment.experiment_id], f"tags.`{KEY_TAG}` = '{identity.key}'", max_results=1
            )
            return str(found[0].info.run_id) if found else None

    def metrics_at(self, run_id: str, step: int, names: list[str]) -> dict[str, float]:
        """Those of the run's metrics that it has at the step."""
        with _told(self._uri) as client:
            histories = {name: client.get_metric_history(run_id, name) for name in names}
        return {name: metric.value for name, history in histories.items() for metric in history if metric.step == step}

    def with_weights(self, run_id: str, weights: str) -> Version | None:
        """The run's version with these weights' sha256, if there is one already."""
        with _told(self._uri) as client:
            versions = client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'")
        return next((_version(one) for one in versions if one.tags.get(WEIGHTS_TAG) == weights), None)

    def at(self, alias: str) -> Version | None:
        """The version that the alias points to, if any."""
        with _told(self._uri) as client:
            numbers = {} if not self._exists(client) else client.get_registered_model(self.name).aliases
            return _version(client.get_model_version(self.name, numbers[alias])) if alias in numbers else None

    def add(self, run_id: str, step: int, files: ModelFiles, tags: Mapping[str, str], description: str) -> Version:
        """Pack the model, see that the package answers, log it to the run, and make a version of it.

        Raises:
            UserError: the server refused it or went away; there is then no version.
        """
        with _told(self._uri) as client, tempfile.TemporaryDirectory(prefix="pixelcnn-model-") as temporary:
            import mlflow

            folder = Path(temporary)
            model = _save(files, folder)
            experiment = client.get_run(run_id).info.experiment_id
            logged = client.create_logged_model(experiment, name=LOGGED_NAME, source_run_id=run_id, model_type=SERVED)
            try:
                model.model_id, model.run_id = logged.model_id, run_id
                model.save(str(folder / "model" / "MLmodel"))
                client.log_model_artifacts(logged.model_id, str(folder / "model"))
                client.finalize_logged_model(logged.model_id, "READY")
                client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(logged.model_id, step)])
                if not self._exists(client):
                    client.create_registered_model(self.name, description="Autoregressive image density models.")
                made = client.create_model_version(
                    self.name,
                    f"models:/{logged.model_id}",
                    run_id=run_id,
                    tags=dict(tags),
                    description=description,
                    model_id=logged.model_id,
                )
            except BaseException:
                with contextlib.suppress(mlflow.MlflowException):
                    client.delete_logged_model(logged.model_id)
                raise
            shown = json.dumps([{"name": self.name, "version": made.version}])
            client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": shown})  # the UI's link to it
            return _version(made)

    def describe(self, version: Version, tags: Mapping[str, str], description: str) -> None:
        """Set tags and the description of a version."""
        with _told(self._uri) as client:
            for name, value in tags.items():
                client.set_model_version_tag(self.name, version.number, name, value)
            client.update_model_version(self.name, version.number, description)

    def point(self, alias: str, version: Version) -> None:
        """Have the alias point to the version."""
        with _told(self._uri) as client:
            client.set_registered_model_alias(self.name, alias, version.number)

    def unpoint(self, alias: str, version: Version) -> None:
        """Take the alias away if it points to the version."""
        there = self.at(alias)
        if there and there.number == version.number:
            with _told(self._uri) as client:
                client.delete_registered_model_alias(self.name, alias)

    def _exists(self, client: Any) -> bool:
        return bool(client.search_registered_models(f"name = '{self.name}'"))


def _save(files: ModelFiles, folder: Path) -> Any:
    """The MLflow model in folder/model, whose package was loaded and has answered the probe."""
    import mlflow
    import pandas as pd

    # From here, as only MLflow's own processes need them: this imports torch models and MLflow's types.
    from pipeline.served_model import CONFIG_NAME, DEFAULTS, WEIGHTS_NAME, signature

    packed = pack(SERVED, folder / "code")
    (folder / "data").mkdir()
    shutil.copyfile(files.weights, folder / "data" / WEIGHTS_NAME)
    (folder / "data" / CONFIG_NAME).write_text(files.config_json)
    model = mlflow.models.Model()
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        loader_module=packed.module,
        data_path=str(folder / "data"),
        code_paths=[str(packed.folder)],
        mlflow_model=model,
        signature=signature(),
        input_example=(pd.DataFrame(files.example), DEFAULTS),
        pip_requirements=list(packed.requirements),
    )
    path = sys.path
    try:
        loaded = mlflow.pyfunc.load_model(str(folder / "model"))
        loaded.predict(pd.DataFrame(files.probe), params={"task": "score"})
    finally:
        sys.path = path
        for name in [name for name in sys.modules if name.split(".")[0] == packed.folder.name]:
            del sys.modules[name]
    for cache in list((folder / "model").rglob("__pycache__")):
        shutil.rmtree(cache)
    return model


def _version(version: Any) -> Version:
    return Version(str(version.version), dict(version.tags))


@contextlib.contextmanager
def _told(tracking_uri: str) -> Iterator[Any]:
    """A client; what the server refuses or leaves unanswered becomes a UserError."""
    try:
        require_server(tracking_uri)
    except UserError as error:
        raise UserError(f"{error}; run the same command again once it answers") from error
    import mlflow

    named = os.environ.get(URI_VARIABLE)
    try:
        os.environ[URI_VARIABLE] = tracking_uri  # a client looks up models:/ there, wherever it is a client of
        yield mlflow.MlflowClient(tracking_uri)
    except mlflow.MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"MLflow at {tracking_uri} refused: {reason}; put it right and try again") from error
    finally:
        if named is None:
            os.environ.pop(URI_VARIABLE, None)
        else:
            os.environ[URI_VARIABLE] = named
