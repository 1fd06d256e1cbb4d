"""What a person should hear of a run while it goes on: it diverges, starves, stalls, wanders off; a line and a tag."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.optim import rate_share

STARVING_FRACTION = 0.1
STARVING_LINES = 3
"""Lines of progress in a row in which workers waited for data longer than STARVING_FRACTION of the time."""
STALL_FACTOR, SHORTEST_STALL_SECONDS = 10.0, 60.0
"""A step that takes so many times the longest one before, and at least so many seconds, counts as stalled."""
LOOK_SECONDS = 1.0
NOISE_FACTOR = 1.2
"""By how much more than data.val_split's what a model draws may cost it. Amid noise that is 6 bits/dim; small models
whose images had noise came to 1.2 times val's, the large `cifar10`, whose images are busy but sound, to 1.34."""
CALM_SHARE = 0.1
"""Share of the peak learning rate up to which that is judged: above it averaged weights are less sure than right."""

Tell = Callable[[str, str], None]
"""Takes the kind of an alert (diverging, starving, stalled, noise) and what to do."""


@dataclass
class Alerts:
    """Watches what the run logs. An alert is told when its state begins, and again only after that has ended."""

    config: Config
    tell: Tell
    _told: set[str] = field(default_factory=set)
    _starving_lines: int = 0

    def look(self, step: int, metrics: dict[str, float]) -> None:
        """Judge the metrics of one line of progress."""
        bits, uniform = metrics.get("train/bits_per_dim", 0.0), math.log2(self.config.data.levels)
        training = self.config.train
        self._state(
            "diverging",
            step > training.warmup_steps and bits > uniform,
            f"step {step:,}: {bits:.2f} bits/dim is worse than the {uniform:g} of levels drawn at random; stop the run "
            f"and lower train.learning_rate ({training.learning_rate}) or raise train.warmup_steps "
            f"({training.warmup_steps})",
        )
        waiting = metrics["train/data_wait_fraction"]
        self._starving_lines = self._starving_lines + 1 if waiting > STARVING_FRACTION else 0
        self._state(
            "starving",
            self._starving_lines >= STARVING_LINES,
            f"step {step:,}: workers wait for data {waiting:.0%} of the time; set data.cache_folder, raise "
            f"data.parallel_reads ({self.config.data.parallel_reads}), or bring data.url nearer",
        )

    def drawn(self, step: int, metrics: dict[str, float]) -> None:
        """Judge what the grid's images cost, beside those of data.val_split under the same weights."""
        drawn, val, training = metrics["drawn/bits_per_dim"], metrics["val/bits_per_dim"], self.config.train
        if step < training.steps and rate_share(training, step) > CALM_SHARE:
            return
        self._state(
            "noise",
            drawn > NOISE_FACTOR * val,
            f"step {step:,}: the images that it draws cost {drawn:.2f} bits/dim, those of {self.config.data.val_split} "
            f"{val:.2f}: it wanders off. Look at the samples: if they are only busier than real ones, draw with "
            f"sample.temperature 0.95; if coloured dots spread in them, set model.trained_logit_scale, raise "
            f"train.noisy_images ({training.noisy_images}), lower train.muon_learning_rate "
            f"({training.muon_learning_rate}) or train.learning_rate ({training.learning_rate}), or raise "
            f"train.weight_decay ({training.weight_decay})",
        )

    def _state(self, kind: str, present: bool, what: str) -> None:
        if present and kind not in self._told:
            self.tell(kind, what)
        (self._told.add if present else self._told.discard)(kind)


class StallWatch:
    """Tells once of each step that takes far longer than any before; a thread, as a stalled loop can't tell itself."""

    def __init__(self, config: Config, tell: Tell) -> None:
        self._config, self._tell = config, tell
        self._lock = threading.Lock()
        self._began: float | None = None
        self._longest: float | None = None
        self._step = 0
        self._told = self._ended = False

    def begin(self, step: int) -> None:
        """A step begins."""
        with self._lock:
            self._began, self._step, self._told = time.monotonic(), step, False

    def end(self) -> None:
        """It is done; what comes until the next one begins (evaluation, drawing) isn't watched."""
        with self._lock:
            if self._began is not None:
                self._longest = max(self._longest or 0.0, time.monotonic() - self._began)
            self._began = None

    def look(self) -> None:
        """Tell if the present step has taken too long. The first one, which may compile, has no limit."""
        with self._lock:
            if self._began is None or self._longest is None or self._told:
                return
            seconds, limit = time.monotonic() - self._began, max(STALL_FACTOR * self._longest, SHORTEST_STALL_SECONDS)
            if seconds <= limit:
                return
            self._told = True
        self._tell(
            "stalled",
            f"step {self._step:,} has taken {seconds:.0f} s so far, the longest {self._longest:.1f} s; a worker, "
            "its machine or storage is stuck: see Ray's dashboard. Workers that don't answer are given up after "
            f"cluster.hang_seconds ({self._config.cluster.hang_seconds:g}), the group after cluster.stall_seconds "
            f"({self._config.cluster.stall_seconds:g})",
        )

    @contextmanager
    def watching(self) -> Iterator["StallWatch"]:
        """Look every second while it lasts."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_SECONDS):
                self.look()

        thread = threading.Thread(target=watch, name="stall-watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
