"""Checkpoints on their way to storage, beside the training: tried again, superseded by newer ones, thinned out."""

import threading
from collections.abc import Callable

from pipeline.checkpoint import Snapshot, folder_name, last_sound, remove_old, upload, val_measures
from pipeline.errors import LastingError, UserError
from pipeline.storage import join

RETRY_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds after each failed upload in a row before the next is tried; one more failure ends the run."""


class Uploader:
    """A thread that keeps one snapshot after the other; of those that wait only the newest is kept."""

    def __init__(
        self, run_url: str, keep_newest: int, keep_best: int, on_kept: Callable[[str], None], last_kept: str = ""
    ) -> None:
        """Start the thread.

        Args:
            run_url: the run's folder.
            keep_newest: how many of the newest checkpoints stay.
            keep_best: how many of those with the lowest measure stay.
            on_kept: is told the URL of each new one.
            last_kept: URL of the one from which the run goes on.
        """
        self._on_kept, self._last_kept = on_kept, last_kept
        self._run_url, self._keep_newest, self._keep_best = run_url, keep_newest, keep_best
        self._measures: dict[str, float] | None = None
        self._waiting: Snapshot | None = None
        self._busy = False
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint-uploader", daemon=True)
        self._thread.start()

    def put(self, snapshot: Snapshot) -> None:
        """Have a snapshot uploaded, instead of an older one that still waits.

        Raises:
            UserError: an earlier upload failed for good; the message names the last sound checkpoint.
        """
        with self._changed:
            self._raise_failure()
            self._waiting = snapshot
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until everything is uploaded.

        Raises:
            UserError: it can't be; the message names the last sound checkpoint.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not (self._waiting or self._busy))
            self._raise_failure()

    def close(self) -> None:
        """End the thread after what it is at, and after one try of what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        failed = 0
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._waiting is None:
                    return
                snapshot, self._waiting, self._busy = self._waiting, None, True
            try:
                self._keep(snapshot)
                failed = 0
            except UserError as error:
                if self._closed:
                    print(_not_kept(snapshot, error), flush=True)
                    continue
                if isinstance(error, LastingError) or failed == len(RETRY_PAUSES):
                    self._fail(UserError(f"{error}; {last_sound(self._run_url, self._last_kept)}"))
                    return
                self._put_back(snapshot, error, RETRY_PAUSES[failed])
                failed += 1
            except BaseException as error:  # the training thread must hear of it
                self._fail(error)
                return

    def _keep(self, snapshot: Snapshot) -> None:
        name = folder_name(snapshot.state.step)
        if self._measures is None:
            self._measures = val_measures(self._run_url)
        upload(snapshot, join(self._run_url, name))
        if snapshot.state.val_measure is not None:
            self._measures[name] = snapshot.state.val_measure
        print(f"kept {join(self._run_url, name)}", flush=True)
        self._last_kept = join(self._run_url, name)
        self._on_kept(self._last_kept)
        remove_old(self._run_url, self._measures, self._keep_newest, self._keep_best)

    def _put_back(self, snapshot: Snapshot, error: UserError, pause: float) -> None:
        print(f"{_not_kept(snapshot, error)}; training goes on, another try in {pause:g} s", flush=True)
        with self._changed:
            self._waiting = self._waiting or snapshot
            self._changed.wait_for(lambda: self._closed, timeout=pause)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()


def _not_kept(snapshot: Snapshot, error: UserError) -> str:
    return f"warning: the checkpoint of step {snapshot.state.step:,} was not kept ({error})"
