"""A run's checkpoints as the training loop sees them: copied at once, uploaded meanwhile, waited for at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.checkpoint import folder_name
from pipeline.evaluate import Measured
from pipeline.learner import Learner, run_url_of
from pipeline.mlflow_run import CHECKPOINT_TAG
from pipeline.orders import wait_for_all
from pipeline.storage import join
from pipeline.tracking import Tracker
from pipeline.uploader import Uploader


class Keeper:
    """Every rank has one; rank 0's has the uploader."""

    def __init__(self, learner: Learner, tracker: Tracker | None) -> None:
        self._learner, self._tracker, self._uploader = learner, tracker, None
        if tracker:
            run, run_url = learner.config.run, run_url_of(learner.config)
            last_kept = join(run_url, folder_name(learner.saved_step)) if learner.saved_step else ""
            self._uploader = Uploader(
                run_url, run.keep_checkpoints, run.keep_best, lambda url: tracker.tags({CHECKPOINT_TAG: url}), last_kept
            )

    def save(self, measured: Measured | None) -> None:
        """Copy a checkpoint of finite weights to host memory, to be uploaded while training goes on.

        Raises:
            UserError: the weights are not finite, or an earlier checkpoint can't be kept.
        """
        learner = self._learner
        learner.require_finite()
        if self._uploader and self._tracker:
            self._uploader.put(learner.snapshot(measured, self._tracker.undelivered()))
        learner.saved_step = learner.step

    def finish(self) -> None:
        """Wait on all ranks until the last checkpoint is where it belongs.

        Raises:
            UserError: it can't be kept.
        """
        if self._uploader:
            self._uploader.wait()
        wait_for_all(self._learner.worker)

    def close(self) -> None:
        """End the upload that is under way, and try what waits once."""
        if self._uploader:
            self._uploader.close()


@contextmanager
def keeping(learner: Learner, tracker: Tracker | None) -> Iterator[Keeper]:
    """The keeper of a run's checkpoints, closed at the end."""
    keeper = Keeper(learner, tracker)
    try:
        yield keeper
    finally:
        keeper.close()
