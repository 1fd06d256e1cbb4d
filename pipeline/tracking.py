"""The door to MLflow: one run however often training restarts, and nothing lost while the server is away.

Entries wait in a queue that a thread empties in order; training never waits for the server. What is still waiting is
kept in every checkpoint and, at the end, in the run's folder, and goes first at the next start. Delivering an entry
twice adds nothing: metrics go on after the last step that the server has, images that it has are passed over.
"""

import base64
import collections
import contextlib
import io
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import UserError
from pipeline.run_identity import RunIdentity
from pipeline.storage import MissingObjectError, delete, join, read, write

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
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0

Entry = dict[str, Any]


class Tracker:
    """Writes one MLflow run from one process (rank 0, or the driver when no worker is left)."""

    def __init__(self, identity: RunIdentity, undelivered: list[Entry] | None = None) -> None:
        self._identity = identity
        self._waiting: collections.deque[Entry] = collections.deque(undelivered or [])
        self._waiting.extend(_kept_entries(identity.run_url))
        self._changed = threading.Condition()
        self._stopped = False
        self._server_away = False
        self._thread = threading.Thread(target=self._deliver, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Add metrics at a step."""
        self._add({"kind": "metrics", "step": step, "time": _now(), "values": values})

    def image(self, step: int, key: str, png: bytes) -> None:
        """Add a picture at a step, for the UI's image view."""
        content = base64.b64encode(png).decode()
        self._add({"kind": "image", "step": step, "time": _now(), "key": key, "png": content})

    def file(self, path: str, content: bytes) -> None:
        """Add an artifact of a name, e.g. "search/table.md"."""
        self._add({"kind": "file", "path": path, "content": base64.b64encode(content).decode()})

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of the run."""
        self._add({"kind": "tags", "values": values})

    def running(self) -> None:
        """Say that the run goes on, after an earlier end, with the tags of this start."""
        self.tags(self._identity.tags)
        self._add({"kind": "status", "status": "RUNNING", "time": _now()})

    def undelivered(self) -> list[Entry]:
        """A copy of what the server has not taken yet, as JSON."""
        with self._changed:
            return list(self._waiting)

    def close(self, status: str | None) -> None:
        """End the run as FINISHED or FAILED (None leaves it open) once everything is delivered or patience is over.

        What the server didn't take is kept in the run's folder for the next start of the same command.
        """
        if status:
            self._add({"kind": "status", "status": status, "time": _now()})
        deadline = time.monotonic() + self._identity.patience_seconds
        with self._changed:
            while self._waiting and time.monotonic() < deadline:
                self._changed.wait(0.1)
            self._stopped = True
            rest = list(self._waiting)
            self._changed.notify_all()
        kept_url = _kept_url(self._identity.run_url)
        if rest:
            write(kept_url, json.dumps(rest).encode())
            print(
                f"MLflow at {self._identity.tracking_uri} did not answer: {len(rest)} entries are kept in {kept_url} "
                "and delivered when the same command runs again",
                flush=True,
            )
        else:
            delete(kept_url)

    def _add(self, entry: Entry) -> None:
        with self._changed:
            self._waiting.append(entry)
            self._changed.notify_all()

    def _deliver(self) -> None:
        """Take entries from the front, only after the server has them; the run itself is opened first."""
        pause, session = FIRST_PAUSE, None
        while not self._stopped:
            with self._changed:
                if not self._waiting and session:
                    self._changed.wait(0.5)
                    continue
                entries = _together(self._waiting)
            try:
                session = session or _Session(self._identity)
                if entries:
                    session.deliver(entries)
                    with self._changed:
                        for _ in entries:
                            self._waiting.popleft()
                        self._changed.notify_all()
                self._say_back()
                pause = FIRST_PAUSE
            except Exception as error:  # the server may answer anything while it dies; training goes on whatever it is
                self._say_away(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _say_away(self, error: Exception) -> None:
        if not self._server_away:
            told = _why_away(self._identity.tracking_uri, error)
            print(f"warning: {told}; training goes on and delivers later", flush=True)
        self._server_away = True

    def _say_back(self) -> None:
        if self._server_away:
            print(f"MLflow is back; {len(self._waiting)} entries are being delivered", flush=True)
        self._server_away = False


def require_server(tracking_uri: str) -> None:
    """Raise UserError unless the tracking server answers."""
    import mlflow

    try:
        mlflow.MlflowClient(tracking_uri=tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # whatever the client or the server raises
        raise UserError(_why_away(tracking_uri, error)) from error


def open_run(identity: RunIdentity) -> str:
    """The id of the run in MLflow, found or made, and running again; UserError where the server does not answer."""
    require_server(identity.tracking_uri)
    session = _Session(identity)
    session.deliver([{"kind": "tags", "values": identity.tags}])
    session.deliver([{"kind": "status", "status": "RUNNING"}])
    return str(session.run_id)


def last_checkpoint_told(identity: RunIdentity) -> str:
    """URL of the run's last checkpoint as MLflow knows it; empty where it doesn't, or does not answer."""
    try:
        session = _Session(identity)
        return str(session.tags().get(CHECKPOINT_TAG, ""))
    except Exception:  # it is asked for the sake of a message, whose own reason must be told
        return ""


def end_run(identity: RunIdentity, status: str, tags: dict[str, str]) -> None:
    """End a run whose folder a Tracker can't read; tried once, in vain where MLflow does not answer."""
    with contextlib.suppress(Exception):  # the run has failed, and why is told by who calls
        session = _Session(identity)
        session.deliver([{"kind": "tags", "values": tags}])
        session.deliver([{"kind": "status", "status": status, "time": _now()}])


class _Session:
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
        location = None
        if identity.tracking_uri.startswith("sqlite:///"):
            location = join(os.path.dirname(identity.tracking_uri.removeprefix("sqlite:///")), "mlartifacts")
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
            tags = [self._entities.RunTag(name, value[:5000]) for name, value in entry["values"].items()]
            self._client.log_batch(self.run_id, tags=tags)
        elif entry["kind"] == "file":
            self._file(entry["path"], base64.b64decode(entry["content"]))
        elif entry["status"] == "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, status=entry["status"], end_time=entry["time"])

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


def _together(waiting: collections.deque[Entry]) -> list[Entry]:
    """What goes to the server at once: the metrics in front, as many as it takes, or one entry of another kind."""
    together: list[Entry] = []
    count = 0
    for entry in waiting:
        count += len(entry.get("values", ()))
        if together and (entry["kind"] != "metrics" or count > METRICS_AT_ONCE):
            break
        together.append(entry)
        if entry["kind"] != "metrics":
            break
    return together


def _why_away(tracking_uri: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if "error code 401" in reason or "error code 403" in reason:
        return f"MLflow at {tracking_uri} refuses MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD; correct them"
    return f"MLflow at {tracking_uri} can't be reached ({reason})"


def _kept_url(run_url: str) -> str:
    return join(run_url, "undelivered-tracking.json")


def _kept_entries(run_url: str) -> list[Entry]:
    try:
        entries: list[Entry] = json.loads(read(_kept_url(run_url)))
    except MissingObjectError:
        return []
    return entries


def _now() -> int:
    return int(time.time() * 1000)
