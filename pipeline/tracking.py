"""What a run tells MLflow: one run however often training restarts, and nothing lost while the server is away.

Entries wait in a queue that a thread empties in order; training never waits for the server. What is still waiting is
kept in every checkpoint and, at the end, in the run's folder, and goes first at the next start.
"""

import base64
import collections
import json
import threading
import time

from pipeline.mlflow_run import Entry, Session, now, together, why_away
from pipeline.run_identity import RunIdentity
from pipeline.storage import MissingObjectError, delete, join, read, write

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


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
        self._add({"kind": "metrics", "step": step, "time": now(), "values": values})

    def image(self, step: int, key: str, png: bytes) -> None:
        """Add a picture at a step, for the UI's image view."""
        content = base64.b64encode(png).decode()
        self._add({"kind": "image", "step": step, "time": now(), "key": key, "png": content})

    def file(self, path: str, content: bytes) -> None:
        """Add an artifact of a name, e.g. "search/table.md"."""
        self._add({"kind": "file", "path": path, "content": base64.b64encode(content).decode()})

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of the run."""
        self._add({"kind": "tags", "values": values})

    def running(self) -> None:
        """Say that the run goes on, after an earlier end, with the tags of this start."""
        self._add({"kind": "start", "time": now(), "values": self._identity.tags})

    def undelivered(self) -> list[Entry]:
        """A copy of what the server has not taken yet, as JSON."""
        with self._changed:
            return list(self._waiting)

    def close(self, status: str | None) -> None:
        """End the run as FINISHED or FAILED (None leaves it open) once everything is delivered or patience is over.

        What the server didn't take is kept in the run's folder for the next start of the same command.
        """
        if status:
            self._add({"kind": "status", "status": status, "time": now()})
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
                entries = together(self._waiting)
            try:
                session = session or Session(self._identity)
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
            told = why_away(self._identity.tracking_uri, error)
            print(f"warning: {told}; training goes on and delivers later", flush=True)
        self._server_away = True

    def _say_back(self) -> None:
        if self._server_away:
            print(f"MLflow is back; {len(self._waiting)} entries are being delivered", flush=True)
        self._server_away = False


def _kept_url(run_url: str) -> str:
    return join(run_url, "undelivered-tracking.json")


def _kept_entries(run_url: str) -> list[Entry]:
    try:
        entries: list[Entry] = json.loads(read(_kept_url(run_url)))
    except MissingObjectError:
        return []
    return entries
