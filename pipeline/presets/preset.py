"""What a named configuration says of itself, and what several of them share."""

from dataclasses import dataclass

from pipeline.config import Cluster, Config

GPUS = Cluster(num_workers=8, use_gpu=True, cpus_per_worker=4, assumed_tflops=200.0, dollars_per_worker_hour=4.0)
ONE_GPU = GPUS.model_copy(update={"num_workers": 1})
H, HEAD = 129, 1026
"""PixelRNN's h = 128 and its head's 1,024 filters (Table 1), the nearest that three colours divide."""
NOT_MEASURED = "see --dry-run; not yet measured on a GPU"


@dataclass(frozen=True)
class Preset:
    """A configuration and what a person should know before choosing it."""

    config: Config
    data_version: str
    cost: str
    expect: str

    @property
    def summary(self) -> str:
        """Data version, cost and expected bits/dim in a line."""
        return f"{self.data_version}. Cost: {self.cost}. Expect: {self.expect}."
