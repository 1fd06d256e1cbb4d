"""The door to MLflow's runs: each found by its key or made, and told entries so that telling twice adds nothing.

Metrics go on after the last step that the server has, images that it has are passed over.
"""

import base64
import contextlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import UserError
from pipeline.run_identity import RunIdentity, sqlite_file
from pipeline.storage import join

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

KEY_TAG = "pixelcnn.run"
SMALL_SUFFIX = "+compressed.webp"
"""Of the second file of an image, which the UI shows; a server that died may have only the first."""
METRICS_AT_ONCE = 1000
"""Values that MLflow takes in one request."""
IMPORTING = threading.Lock()
"""Two threads that import parts of MLflow at once may meet half-made modules."""
CHECKPOINT_TAG = "checkpoint"
"""Of the run: URL of the last checkpoint that was kept."""

Entry = dict[str, Any]


def require_server(tracking_uri: str) -> None:
    """Raise UserError unless the tracking server answers."""
    import mlflow

    try:
        mlflow.MlflowClient(tracking_uri=tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # whatever the client or the server raises
        raise UserError(why_away(tracking_uri, error)) from error


def open_run(identity: RunIdentity) -> str:
    """The id of the run in MLflow, found or made, and running again; UserError where the server does not answer."""
    require_server(identity.tracking_uri)
    session = Session(identity)
    session.deliver([{"kind": "start", "time": now(), "values": identity.tags}])
    return str(session.run_id)


def make_run(identity: RunIdentity) -> None:
    """Make the run in MLflow where there is none yet; tried once, in vain where MLflow does not answer.

    Else whoever tells of a run makes it, and two processes that look for it at the same moment make two.
    """
    with contextlib.suppress(Exception):  # whoever has something to tell of the run tries on
        Session(identity)


def last_checkpoint_told(identity: RunIdentity) -> str:
    """URL of the run's last checkpoint as MLflow knows it; empty where it doesn't, or does not answer."""
    try:
        session = Session(identity)
        return str(session.tags().get(CHECKPOINT_TAG, ""))
    except Exception:  # it is asked for the sake of a message, whose own reason must be told
        return ""


def end_run(identity: RunIdentity, status: str, tags: dict[str, str]) -> None:
    """End a run whose folder a Tracker can't read; tried once, in vain where MLflow does not answer."""
    with contextlib.suppress(Exception):  # the run has failed, and why is told by who calls
        session = Session(identity)
        session.deliver([{"kind": "tags", "values": tags}])
        session.deliver([{"kind": "status", "status": status, "time": now()}])


class Session:
    """A connection to the run: found by its key or made, with its params, tags, config.json and data set."""

    def __init__(self, identity: RunIdentity) -> None:
        with IMPORTING:
            import mlflow.entities  # seconds of import, only where something is tracked

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=identity.tracking_uri)
        self._last_steps: dict[str, int] = {}
        experiment_id = self._experiment(identity)
        found = self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{identity.key}'", max_results=1)
        tags = identity.tags | {KEY_TAG: identity.key}
        run = found[0] if found else self._client.create_run(experiment_id, tags=tags, run_name=identity.name)
        self.run_id = run.info.run_id
        self._describe(identity, run.data.params, run.inputs.dataset_inputs if run.inputs else [])

    def _experiment(self, identity: RunIdentity) -> str:
        experiment = self._client.get_experiment_by_name(identity.experiment)
        if experiment:
            return str(experiment.experiment_id)
        file = sqlite_file(identity.tracking_uri)
        location = join(os.path.dirname(file), "mlartifacts") if file else None
        return str(self._client.create_experiment(identity.experiment, artifact_location=location))

    def _describe(self, identity: RunIdentity, there: dict[str, str], inputs: list[Any]) -> None:
        params = [self._entities.Param(name, value) for name, value in identity.params.items() if name not in there]
        for start in range(0, len(params), 100):
            self._client.log_batch(self.run_id, params=params[start : start + 100])
        self._client.log_text(self.run_id, identity.config_json, "config.json")
        if not inputs:
            dataset = self._entities.Dataset(**identity.dataset)
            context = [self._entities.InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(self.run_id, [self._entities.DatasetInput(dataset, context)])

    def tags(self) -> dict[str, str]:
        """Tags of the run."""
        return dict(self._client.get_run(self.run_id).data.tags)

    def deliver(self, entries: list[Entry]) -> None:
        """Hand entries to the server: one, or metrics that go together."""
        entry = entries[0]
        if entry["kind"] == "metrics":
            self._metrics(entries)
        elif entry["kind"] == "image":
            self._image(entry)
        elif entry["kind"] == "tags":
            self._tags(entry["values"])
        elif entry["kind"] == "file":
            self._file(entry["path"], base64.b64decode(entry["content"]))
        elif entry["kind"] == "start":
            self._start(entry)
        elif self._client.get_run(self.run_id).info.status != entry["status"]:
            self._client.set_terminated(self.run_id, status=entry["status"], end_time=entry["time"])

    def _start(self, entry: Entry) -> None:
        """The run goes on, unless it has ended since: the end of a stopped trial may overtake its workers' start."""
        if (self._client.get_run(self.run_id).info.end_time or 0) < entry["time"]:
            self._tags(entry["values"])
            self._client.update_run(self.run_id, status="RUNNING")

    def _tags(self, values: dict[str, str]) -> None:
        tags = [self._entities.RunTag(name, value[:5000]) for name, value in values.items()]
        self._client.log_batch(self.run_id, tags=tags)

    def _metrics(self, entries: list[Entry]) -> None:
        fresh, reached = [], dict[str, int]()
        for entry in entries:
            for name, value in entry["values"].items():
                if entry["step"] > reached.get(name, self._last_step(name)):
                    fresh.append(self._entities.Metric(name, value, entry["time"], entry["step"]))
                    reached[name] = entry["step"]
        if fresh:
            self._client.log_batch(self.run_id, metrics=fresh)
        self._last_steps |= reached

    def _last_step(self, name: str) -> int:
        """The last step that the server has of a metric, -1 for none."""
        if name not in self._last_steps:
            history = self._client.get_metric_history(self.run_id, name)
            self._last_steps[name] = max((metric.step for metric in history), default=-1)
        return self._last_steps[name]

    def _image(self, entry: Entry) -> None:
        key, step = entry["key"], entry["step"]
        listed = [artifact.path for artifact in self._client.list_artifacts(self.run_id, "images")]
        there = [path for path in listed if path.startswith(f"images/{key}+step+{step}+")]
        picture = Image.open(io.BytesIO(base64.b64decode(entry["png"])))
        if not there:
            self._client.log_image(self.run_id, picture, key=key, step=step, timestamp=entry["time"])
            return
        if not any(path.endswith(SMALL_SUFFIX) for path in there):
            small = io.BytesIO()
            picture.save(small, "WEBP")
            self._file(there[0].removesuffix(".png") + SMALL_SUFFIX, small.getvalue())
        self._client.set_tag(self.run_id, "mlflow.loggedImages", "True")

    def _file(self, path: str, content: bytes) -> None:
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            Path(temporary, name).write_bytes(content)
            self._client.log_artifact(self.run_id, os.path.join(temporary, name), folder or None)


class SystemMetrics:
    """MLflow's own monitors of CPU, memory, disk, network and GPU, read when training logs; none without MLflow.

    A thread makes them, as importing MLflow takes a second or more; until then there is nothing to read. A machine that
    only trains may lack it: what a run tells is then kept in its folder, as if the server were away.
    """

    def __init__(self) -> None:
        self._monitors: list[Any] = []
        threading.Thread(target=self._make, name="system-metrics", daemon=True).start()

    def _make(self) -> None:
        try:
            with IMPORTING:
                from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor
        except ImportError:
            return
        monitors: list[Any] = [cpu_monitor.CPUMonitor(), disk_monitor.DiskMonitor(), network_monitor.NetworkMonitor()]
        with contextlib.suppress(Exception):  # MLflow's monitor raises what it likes where there is no NVIDIA GPU
            monitors.append(gpu_monitor.GPUMonitor())
        self._monitors = monitors

    def read(self) -> dict[str, float]:
        """The values since the last reading, e.g. {"system/cpu_utilization_percentage": 93.0}."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


def together(waiting: Iterable[Entry]) -> list[Entry]:
    """What goes to the server at once: the metrics in front, as many as it takes, or one entry of another kind."""
    taken: list[Entry] = []
    count = 0
    for entry in waiting:
        count += len(entry.get("values", ()))
        if taken and (entry["kind"] != "metrics" or count > METRICS_AT_ONCE):
            break
        taken.append(entry)
        if entry["kind"] != "metrics":
            break
    return taken


def why_away(tracking_uri: str, error: Exception) -> str:
    """What a person is told of a server that does not answer, or refuses."""
    reason = " ".join(str(error).split())[:300]
    if "error code 401" in reason or "error code 403" in reason:
        return f"MLflow at {tracking_uri} refuses MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD; correct them"
    return f"MLflow at {tracking_uri} can't be reached ({reason})"


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
