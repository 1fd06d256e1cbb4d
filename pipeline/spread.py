"""Work on many images, shard by shard: in this process or over the cluster, and how far it is."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pipeline.clock import clock
from pipeline.config import Config

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
IMAGES_IN_PROCESS = 2_000
SECONDS_BETWEEN_LINES = 10.0


class Spread:
    """Work on many images, piece after piece; a cluster that is started for the first of them ends with the last."""

    def __init__(self, config: Config) -> None:
        self._has_workers = config.cluster.num_workers > 0
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Spread":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def map(
        self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT], images: int
    ) -> Iterator[tuple[int, ResultT]]:
        """The index and result of every item as they come: in this process for so few images, else as Ray tasks.

        Raises:
            UserError: the function raised one, or a task was lost.
        """
        if not self._has_workers or images <= IMAGES_IN_PROCESS:
            return ((index, function(item)) for index, item in enumerate(items))
        from pipeline.tasks import map_tasks, own_cluster  # a few images are done before Ray is imported and started

        self._open.enter_context(own_cluster())
        return map_tasks(function, items)


class ImageProgress:
    """Says now and then how far a long job is."""

    def __init__(self, what: str, images: int) -> None:
        self._what, self._images, self._done, self._first = what, images, 0, 0
        self._started = self._told = time.perf_counter()

    def add(self, images: int) -> None:
        """Count the images of a shard."""
        now = time.perf_counter()
        if not self._done:  # what went before was the start of the cluster, too
            self._first, self._started = images, now
        self._done += images
        if self._done > self._first and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            speed = (self._done - self._first) / (now - self._started)
            left = (self._images - self._done) / speed
            print(
                f"{self._what}: {self._done:,} of {self._images:,} images  {speed:,.0f} images/s  "
                f"time left {clock(left)}",
                flush=True,
            )
