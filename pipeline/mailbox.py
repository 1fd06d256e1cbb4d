"""An actor on the driver's host: what workers print and report on its way to the driver, its orders on theirs back."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pipeline.ray_cluster  # noqa: F401  # first, as it decides on a token, which Ray reads when it is imported

# isort: split
import ray

from pipeline.told import Orders

SECONDS_BETWEEN_READINGS = 0.25
SECONDS_UNTIL_ORPHANED = 15.0
"""Seconds without an answer after which a worker's driver counts as lost."""

Hear = Callable[[dict[str, float]], object]
"""What is called on the driver with metrics that rank 0 reports."""


class Mailbox:
    """Handle of the actor; it goes to workers and callbacks."""

    def __init__(self) -> None:
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        self.actor = ray.remote(num_cpus=0, label_selector=here)(_Letters).remote()

    def print(self, line: str) -> Any:
        """Have the driver print a line; gives what can be waited for."""
        return self.actor.add_line.remote(line)

    def report(self, metrics: dict[str, float]) -> None:
        """Have the driver hear of a run's metrics; nothing waits for it."""
        self.actor.add_report.remote(metrics)

    def order(self, orders: Orders) -> Any:
        """Tell the workers; gives what can be waited for."""
        return self.actor.order.remote(orders.value)

    def orders(self, timeout: float) -> Orders:
        """What the workers are told."""
        return Orders(ray.get(self.actor.orders.remote(), timeout=timeout))

    def kept(self) -> None:
        """Say that a checkpoint is kept, as Orders.HOLD asks."""
        ray.get(self.actor.kept.remote(), timeout=SECONDS_UNTIL_ORPHANED)

    def hold(self, seconds: float) -> bool:
        """Tell the workers to keep a checkpoint and wait; whether they did within so many seconds."""
        ray.get(self.actor.order.remote(Orders.HOLD.value), timeout=seconds)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not ray.get(self.actor.orders.remote(), timeout=seconds) & Orders.HOLD.value:
                return True
            time.sleep(0.1)
        ray.get(self.actor.kept.remote(), timeout=seconds)
        return False

    @contextlib.contextmanager
    def delivered(self, hear: Hear | None) -> Iterator[None]:
        """Print the workers' lines and have their reports heard while they work, and what is left at the end."""
        ended = threading.Event()

        def deliver() -> None:
            with contextlib.suppress(ray.exceptions.RayError):  # the actor ends with the cluster
                last = False
                while not last:
                    last = ended.wait(0.2)
                    lines, reports = ray.get(self.actor.take.remote())
                    for line in lines:
                        print(line, flush=True)
                    if hear:
                        for metrics in reports:
                            hear(metrics)

        thread = threading.Thread(target=deliver, name="letters", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)
            ray.kill(self.actor)


class _Letters:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._reports: list[dict[str, float]] = []
        self._orders = 0

    def add_line(self, line: str) -> None:
        self._lines.append(line)

    def add_report(self, metrics: dict[str, float]) -> None:
        self._reports.append(metrics)

    def take(self) -> tuple[list[str], list[dict[str, float]]]:
        taken = self._lines, self._reports
        self._lines, self._reports = [], []
        return taken

    def order(self, orders: int) -> None:
        self._orders |= orders

    def orders(self) -> int:
        return self._orders

    def kept(self) -> None:
        self._orders &= ~Orders.HOLD.value


class Reader:
    """A thread of rank 0 that asks the mailbox for orders, so that training never waits for it."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox, self._answered = mailbox, time.monotonic()
        self._orders = Orders.NONE
        self._thread = threading.Thread(target=self._read, name="orders", daemon=True)
        self._thread.start()

    def orders(self) -> Orders:
        """The newest orders.

        Raises:
            RuntimeError: the driver is lost; another one may be training this run by now.
        """
        if time.monotonic() - self._answered > SECONDS_UNTIL_ORPHANED:
            raise RuntimeError(f"the driver has not answered for {SECONDS_UNTIL_ORPHANED:g} s")
        return self._orders

    def _read(self) -> None:
        while True:
            with contextlib.suppress(ray.exceptions.RayError):
                self._orders = self.mailbox.orders(SECONDS_UNTIL_ORPHANED)
                self._answered = time.monotonic()
            time.sleep(SECONDS_BETWEEN_READINGS)


class ForwardedOutput(io.TextIOBase):
    """A worker's standard output, whose lines the driver prints as they are."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox, self._rest, self._last = mailbox, "", None

    def write(self, text: str) -> int:
        """Send the whole lines among the text; nothing waits for them."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._last = self._mailbox.print(line)
        return len(text)

    def wait(self) -> None:
        """Wait until every line is in the mailbox."""
        if self._last is not None:
            ray.get(self._last, timeout=SECONDS_UNTIL_ORPHANED)
