"""The one configuration tree: read from the command line, sent to workers as JSON, kept in checkpoints and MLflow."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tyro.conf import Suppress

from models.gated_pixelcnn import GatedPixelCNN, empty_model
from pipeline.errors import UserError


class Section(BaseModel):
    """A frozen part of the tree that knows its keys and refuses all others, naming the dotted key and the value."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
    prefix: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _errors_name_the_dotted_key(cls, values: Any, handler: Callable[[Any], Any]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            told = [
                f"{cls.prefix}{'.'.join(map(str, one['loc']))} {one['input']!r}: {one['msg']}" for one in error.errors()
            ]
            raise UserError("; ".join(told) + " (--help explains each field)") from error


class Model(Section):
    """The Gated PixelCNN; image shape and levels stand in `data`."""

    prefix: ClassVar[str] = "model."
    num_layers: int = Field(default=8, ge=1)
    """Gated layers (Fig. 2 of arXiv 1606.05328)."""
    num_filters: int = Field(default=32, ge=1)
    """Filters of each stack; a multiple of data.channels."""
    kernel_size: int = Field(default=5, ge=3)
    """n of the n x n vertical and 1 x n horizontal convolution in pixels; odd."""
    head_filters: int = Field(default=64, ge=1)
    """Filters between the head's two 1x1 convolutions; a multiple of data.channels."""
    conditional: bool = True
    """Condition every layer on the class label (Eq. 4)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of gated activations set to zero in training."""


class Data(Section):
    """The data set: where it lies, what its images are, how it is made and read."""

    prefix: ClassVar[str] = "data."
    name: str = "digits"
    """Name of the data set; with the size and resize filter it makes the version string."""
    url: str = "data/digits"
    """Folder or s3://bucket/prefix of the prepared shards, a subfolder a split."""
    source: str = ""
    """What `prepare` reads: a folder or tar.gz on this machine; nothing for the embedded digits."""
    source_format: Literal["digits", "cifar10-binary", "class-folders"] = "digits"
    """Layout of the source: scikit-learn's digits, CIFAR-10's binary files, a folder of class folders."""
    image_size: int = Field(default=8, ge=1)
    """Height and width of an image in pixels."""
    channels: Literal[1, 3] = 1
    """Colours of a pixel: 1 (grey) or 3 (R, G, B)."""
    levels: int = Field(default=17, ge=2, le=256)
    """Values that a sub-pixel takes, 0 to levels-1."""
    num_classes: int = Field(default=10, ge=1)
    """Labels of the data set."""
    resize: Literal["none", "box"] = "none"
    """Filter that brings images to image_size: none (they must have it), box (Pillow's BOX on the whole image)."""
    train_split: str = "train"
    """Split that is trained on."""
    val_split: str = "val"
    """Split that is evaluated during training."""
    holdout_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of images that becomes val_split where the source has no splits of its own."""
    records_per_shard: int = Field(default=1000, ge=1)
    """Images in a shard; the last one of a split holds the rest."""
    prepare_seed: int = 0
    """Seed of the order in which records are laid into shards."""
    shuffle_shards: int = Field(default=8, ge=1)
    """Shards whose records are mixed at a time in training; two such groups are held in memory."""
    prefetch_batches: int = Field(default=8, ge=1)
    """Batches that are read ahead of the training step on each worker."""


class Training(Section):
    """What determines the trained weights, beside the model and the data."""

    prefix: ClassVar[str] = "train."
    steps: int = Field(default=1000, ge=1)
    """Optimiser steps of the whole run."""
    batch_size: int = Field(default=128, ge=1)
    """Images a step over all workers; a multiple of cluster.num_workers."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    final_learning_rate: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of the peak that the cosine decay ends at."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """AdamW's decay of the gradient's average."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """AdamW's decay of the squared gradient's average."""
    gradient_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient of the loss in nats a sub-pixel."""
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay a step of the averaged weights used for evaluation and samples."""
    seed: int = 0
    """Seed of weights, order of images and dropout."""


class Run(Section):
    """One training run: its name, where it is kept, how often it speaks and saves."""

    prefix: ClassVar[str] = "run."
    name: str = "digits"
    """Name of the run; the same name goes on where it stopped."""
    url: str = "runs"
    """Folder or s3://bucket/prefix under which each run has a folder of its name."""
    log_interval: int = Field(default=20, ge=1)
    """Steps between two lines of progress and training metrics."""
    eval_interval: int = Field(default=200, ge=1)
    """Steps between two evaluations on data.val_split."""
    sample_interval: int = Field(default=400, ge=1)
    """Steps between two sample grids."""
    checkpoint_interval: int = Field(default=200, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the model; auto: on GPUs."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Autocast of the forward pass; auto: bfloat16 on GPUs, float32 on CPUs."""


class Cluster(Section):
    """Ray Train workers and what they cost."""

    prefix: ClassVar[str] = "cluster."
    num_workers: int = Field(default=2, ge=0)
    """Workers; 0 runs in this process without a cluster."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores reserved for each worker, and its threads where it has no GPU."""
    max_failures: int = Field(default=3, ge=-1)
    """Lost workers after which the run ends; -1: never. Errors that a retry can't mend end it at once."""
    assumed_tflops: float = Field(default=0.03, gt=0.0)
    """Sustained TFLOP/s a worker, for the estimate of --dry-run only."""
    dollars_per_worker_hour: float = Field(default=0.0, ge=0.0)
    """Price of a worker in dollars an hour, for the estimate of --dry-run only."""


class Evaluation(Section):
    """What `evaluate` measures."""

    prefix: ClassVar[str] = "evaluate."
    split: str = "val"
    """Split whose every image is evaluated once."""
    batch_size: int = Field(default=100, ge=1)
    """Images a forward pass of one worker; the sum doesn't depend on the number of workers."""


class Sampling(Section):
    """What `sample` and the grids during training draw."""

    prefix: ClassVar[str] = "sample."
    count: int = Field(default=100, ge=1)
    """Images that `sample` draws, classes in turn."""
    grid_columns: int = Field(default=10, ge=1)
    """Images in a row of the grid; with labels a row is a class."""
    batch_size: int = Field(default=100, ge=1)
    """Images drawn together on a worker."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the log-probabilities; 1 draws from the model itself."""
    seed: int = 0
    """Image i is drawn from seed + i, in whatever batch."""
    url: str = ""
    """Folder or s3://bucket/prefix of the results; nothing: the run's folder, samples/step-N."""


class Tracking(Section):
    """MLflow; the server is MLFLOW_TRACKING_URI, or a sqlite file here where that is unset."""

    prefix: ClassVar[str] = "tracking."
    experiment: str = "pixelcnn-ray"
    """MLflow experiment of the run."""
    patience_seconds: float = Field(default=30.0, ge=0.0)
    """How long the end of a run waits for a server that is down, in seconds; the rest is kept for the next start."""


class Config(Section):
    """Everything that a job needs to know."""

    preset: Suppress[str] = "digits"
    """Preset that this configuration started from."""
    model: Model = Model()
    data: Data = Data()
    train: Training = Training()
    run: Run = Run()
    cluster: Cluster = Cluster()
    evaluate: Evaluation = Evaluation()
    sample: Sampling = Sampling()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if self.train.batch_size % max(1, self.cluster.num_workers):
            raise UserError(
                f"train.batch_size {self.train.batch_size} is not a multiple of cluster.num_workers "
                f"{self.cluster.num_workers}: change one of them"
            )
        for name in ("num_filters", "head_filters"):
            if getattr(self.model, name) % self.data.channels:
                raise UserError(
                    f"model.{name} {getattr(self.model, name)} is not a multiple of data.channels "
                    f"{self.data.channels}: choose a multiple"
                )
        if self.model.kernel_size % 2 == 0:
            raise UserError(f"model.kernel_size {self.model.kernel_size} is even: choose an odd size")
        return self

    @property
    def dims(self) -> int:
        """Sub-pixels of an image."""
        return self.data.channels * self.data.image_size**2

    def model_arguments(self) -> dict[str, int | float]:
        """Keyword arguments of the model that this configuration describes."""
        arguments: dict[str, int | float] = self.model.model_dump(exclude={"conditional"})
        arguments |= {"channels": self.data.channels, "levels": self.data.levels}
        return arguments | {"num_classes": self.data.num_classes if self.model.conditional else 0}

    def build_model(self) -> GatedPixelCNN:
        """The model with random weights from torch's global generator."""
        return GatedPixelCNN(**self.model_arguments())  # type: ignore[arg-type]

    def empty_model(self) -> GatedPixelCNN:
        """The model without memory, for its shapes, parameters and FLOPs."""
        return empty_model(**self.model_arguments())


def flatten(section: Section) -> dict[str, Any]:
    """Dotted keys and values of the tree, e.g. {"model.num_layers": 8}: MLflow's params and the command line's keys."""
    flat: dict[str, Any] = {}
    for key, value in section:
        if isinstance(value, Section):
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in flatten(value).items()}
        else:
            flat[key] = value
    return flat


RESULT_SECTIONS = ("model", "data", "train")
READING_KEYS = ("data.url", "data.source", "data.prefetch_batches")


def changed_result_keys(before: Config, now: Config) -> list[str]:
    """Keys, with both values, that would change what a run trains; where data lie and how often it speaks don't."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key} (was {old[key]!r}, now {new[key]!r})"
        for key in sorted(new)
        if key.split(".")[0] in RESULT_SECTIONS and key not in READING_KEYS and old[key] != new[key]
    ]
