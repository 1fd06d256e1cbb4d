"""The one configuration tree: read from the command line, sent to workers as JSON, kept in checkpoints and MLflow."""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from models.trainable import TrainableModel
from pipeline.errors import UserError
from pipeline.model_config import GatedPixelCNNModel, ImageShape, Model
from pipeline.search_config import Search
from pipeline.section import Section

NAME = r"\w[\w. -]*"
"""What MLflow takes as a registered model's name and finds again: letters, digits, and after them _ . - and spaces."""


class Data(Section):
    """The data set: where it lies, what its images are, how it is made and read."""

    prefix: ClassVar[str] = "data."
    name: str = Field(default="digits", pattern=f"^{NAME}$")
    """Name of the data set: letters and digits, after them _ . - and spaces, too; with the size, resize filter and
    fewer levels it makes the version string."""
    url: str = Field(default="data/digits", min_length=1)
    """Folder or s3://bucket/prefix of the prepared shards, a subfolder a split."""
    source: str = ""
    """What `prepare` reads: a folder, tar.gz or npz on this machine; nothing for the embedded digits."""
    source_format: Literal[
        "digits",
        "cifar10-binary",
        "class-folders",
        "folder",
        "ilsvrc2012",
        "downsampled-imagenet",
        "npz",
        "webdataset",
    ] = "digits"
    """Layout of the source; docs/data.md shows each."""
    image_size: int = Field(default=8, ge=1)
    """Height and width of an image in pixels."""
    channels: Literal[1, 3] = 1
    """Colours of a pixel: 1 (grey) or 3 (R, G, B)."""
    levels: int = Field(default=17, ge=2, le=256)
    """Values that a sub-pixel takes, 0 to levels-1; where they are fewer than the source's, `prepare` quantises."""
    num_classes: int = Field(default=10, ge=1)
    """Labels of the data set."""
    resize: Literal["none", "box", "center-crop-box", "lanczos"] = "none"
    """How images reach image_size: none (they have it), Pillow's BOX or LANCZOS, or the central square by BOX."""
    train_split: str = "train"
    """Split that is trained on."""
    val_split: str = "val"
    """Split that is evaluated during training."""
    holdout: Literal["images", "classes"] = "images"
    """What becomes val_split where the source has no splits of its own: images of every class, or whole classes."""
    holdout_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of each class's images, or of the classes, that becomes val_split; see holdout."""
    max_unreadable: int = Field(default=0, ge=0)
    """Images of a split that may be unreadable: they are listed in its manifest and left out; more end `prepare`."""
    records_per_shard: int = Field(default=1000, ge=1)
    """Images in a shard; the last one of a split holds the rest."""
    prepare_seed: int = 0
    """Seed of what is held out and of the order in which records are laid into shards."""
    on_bad_shard: Literal["fail", "skip"] = "fail"
    """What training does with a shard that can't be read: end with its name, or go on without its images and count them
    (data/skipped_records); evaluation always ends."""
    shuffle_shards: int = Field(default=8, ge=1)
    """Shards whose records are mixed at a time in training; two such groups are held in memory."""
    cache_folder: str = ""
    """Folder on each host's own disk where its workers keep the shards that they read; nothing: none are kept."""
    cache_gigabytes: float = Field(default=100.0, gt=0.0)
    """Most that data.cache_folder may hold, in 1e9 bytes; the least recently used shards go first."""
    parallel_reads: int = Field(default=4, ge=1)
    """Shards that a worker reads at the same time, ahead of their use."""
    prefetch_batches: int = Field(default=8, ge=1)
    """Batches that are read ahead of the training step on each worker."""
    decoded_gigabytes: float = Field(default=0.5, ge=0.0)
    """A training split whose images take no more memory, in 1e9 bytes, is decoded once and kept by each worker; of a
    larger one each image is decoded anew each epoch."""


class Training(Section):
    """What determines the trained weights, beside the model and the data."""

    prefix: ClassVar[str] = "train."
    steps: int = Field(default=1000, ge=1)
    """Optimiser steps of the whole run."""
    batch_size: int = Field(default=128, ge=1)
    """Images a step over all workers, at least cluster.num_workers; fewer workers take more turns a step."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = Field(default=0.0, ge=0.0)
    """Peak learning rate of Muon, which then takes the convolutions' kernels: the share by which a step changes what
    they give. 0: AdamW has them, too."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    final_learning_rate: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of the peak that the cosine decay ends at."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay: of Muon's kernels where it has a rate, else of all weights."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """AdamW's decay of the gradient's average."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """AdamW's decay of the squared gradient's average."""
    gradient_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient of the loss in nats a sub-pixel."""
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay a step of the averaged weights used for evaluation and samples."""
    horizontal_flips: bool = False
    """Mirror each training image left to right with probability one half, anew each epoch; evaluation never does."""
    noisy_images: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the training images that the model reads with noise, while it predicts the true ones: a model trained
    so is not thrown off by what it drew a little wrong."""
    noisy_levels: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the levels of such an image that are replaced by uniform ones."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights, order of images, flips, noise and dropout."""


class Run(Section):
    """One training run: its name, where it is kept, how often it speaks and saves."""

    prefix: ClassVar[str] = "run."
    name: str = "digits"
    """Name of the run; the same name goes on where it stopped. jobs.search takes search.name instead."""
    url: str = Field(default="runs", min_length=1)
    """Folder or s3://bucket/prefix under which each run has a folder of its name."""
    log_interval: int = Field(default=20, ge=1)
    """Steps between two lines of progress and training metrics."""
    eval_interval: int = Field(default=200, ge=1)
    """Steps between two evaluations on data.val_split."""
    sample_interval: int = Field(default=400, ge=1)
    """Steps between two sample grids."""
    checkpoint_interval: int = Field(default=200, ge=1)
    """Steps between two checkpoints; they are uploaded beside the training."""
    checkpoint_minutes: float = Field(default=0.0, ge=0.0)
    """Minutes after which a checkpoint is due even if checkpoint_interval is not over; 0: steps only."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: int = Field(default=1, ge=0)
    """Checkpoints with the best measure on data.val_split that are kept beside the newest; those count that were
    evaluated at their own step."""
    compile: Literal["auto", "on", "off", "reduce-overhead", "max-autotune"] = "auto"
    """torch.compile of the model and its losses; on: on any device; auto: on GPUs. The last two are torch.compile's
    modes of these names, on GPUs: CUDA graphs, and kernels chosen by trial, which takes minutes at the start."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Autocast of the forward pass; auto: bfloat16 on GPUs, float32 on CPUs."""


class Cluster(Section):
    """Ray Train workers and what they cost."""

    prefix: ClassVar[str] = "cluster."
    num_workers: int = Field(default=2, ge=0)
    """Workers; 0 runs in this process without a cluster."""
    min_workers: int = Field(default=0, ge=0)
    """Workers with which a run still starts and goes on when nodes are lost, to grow again when they are back;
    0: all of num_workers."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores reserved for each worker, and its threads where it has no GPU."""
    max_failures: int = Field(default=3, ge=-1)
    """Times that workers may be lost with no checkpoint in between before the run ends; -1: any number. Nodes taken
    away with notice don't count; errors that a retry can't mend end the run at once."""
    hang_seconds: float = Field(default=30.0, gt=0.0, lt=1e9)
    """Seconds without an answer after which a worker (stopped, cut off) is given up and the group starts anew."""
    stall_seconds: float = Field(default=600.0, gt=0.0, lt=1e9)
    """Seconds that workers wait for one that answers but doesn't get on; more than compiling or an evaluation takes."""
    assumed_tflops: float = Field(default=0.03, gt=0.0)
    """Sustained TFLOP/s a worker, for the estimate of --dry-run only."""
    dollars_per_worker_hour: float = Field(default=0.0, ge=0.0)
    """Price of a worker in dollars an hour, for the estimate of --dry-run only."""


class Evaluation(Section):
    """What `evaluate` measures."""

    prefix: ClassVar[str] = "evaluate."
    split: str = ""
    """Split whose every image is evaluated once; nothing: data.val_split."""
    batch_size: int = Field(default=100, ge=1)
    """Images a forward pass of one worker; the sum doesn't depend on the number of workers."""
    conditional: bool = True
    """Give the model its labels; without, one trained with model.condition_dropout is evaluated unconditionally."""


class Sampling(Section):
    """What `sample` and the grids during training draw."""

    prefix: ClassVar[str] = "sample."
    count: int = Field(default=100, ge=1)
    """Images that `sample` draws, classes in turn; what is completed, reconstructed or interpolated is drawn in as many
    whole rows of grid_columns as fit in, one at least."""
    grid_columns: int = Field(default=10, ge=1)
    """Drawn images in a row of the grid; with labels a row is a class, with an encoder one image of the split."""
    conditional: bool = True
    """Draw with labels; without, a model trained with model.condition_dropout draws unconditionally."""
    labels: tuple[int, ...] = ()
    """Classes to draw in turn, a row of the grid each; nothing: all of them."""
    vectors: str = ""
    """File or s3://bucket/key of a .npy array [n, d]: the h of each row, instead of an encoder's."""
    keep_rows: int = Field(default=0, ge=0)
    """Upper rows that are taken from images of sample.split and completed downwards; with labels, by theirs."""
    split: str = ""
    """Split whose images are completed, reconstructed or interpolated; nothing: data.val_split."""
    interpolate: bool = False
    """Rows go from one image's embedding to another's with the same random numbers, instead of redrawing one image."""
    mse_run: str = ""
    """Folder or s3://bucket/prefix of an MSE auto-encoder's run, whose reconstructions stand beside the originals."""
    batch_size: int = Field(default=100, ge=1)
    """Images drawn together on a worker."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the log-probabilities; 1 draws from the model itself."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Image i is drawn from seed + i, in whatever batch."""
    png_files: bool = True
    """Write each image as a PNG file of its own, too."""
    url: str = ""
    """Folder or s3://bucket/prefix of the results; nothing: the run's folder, samples/step-N-REQUEST."""


class Tracking(Section):
    """MLflow; the server is MLFLOW_TRACKING_URI, or a sqlite file here where that is unset."""

    prefix: ClassVar[str] = "tracking."
    experiment: str = Field(default="pixelcnn-ray", min_length=1)
    """MLflow experiment of the run."""
    patience_seconds: float = Field(default=30.0, ge=0.0)
    """How long the end of a run waits for a server that is down, in seconds; the rest is kept for the next start."""
    register_as: str = Field(default="", pattern=f"^({NAME})?$")
    """Registered model of MLflow that the run becomes a version of when `train` has ended; nothing: of none. `register`
    takes data.name where it is empty."""


class Config(Section):
    """Everything that a job needs to know."""

    preset: str = "digits"
    """Preset that this configuration started from."""
    model: Model = GatedPixelCNNModel()
    data: Data = Data()
    train: Training = Training()
    run: Run = Run()
    cluster: Cluster = Cluster()
    evaluate: Evaluation = Evaluation()
    sample: Sampling = Sampling()
    tracking: Tracking = Tracking()
    search: Search = Search()

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if self.train.batch_size < self.cluster.num_workers:
            raise UserError(
                f"train.batch_size {self.train.batch_size} is less than cluster.num_workers "
                f"{self.cluster.num_workers}, so workers would have no image: change one of them"
            )
        if self.cluster.min_workers > self.cluster.num_workers:
            raise UserError(
                f"cluster.min_workers {self.cluster.min_workers} is more than cluster.num_workers "
                f"{self.cluster.num_workers}: change one of them"
            )
        folders = {
            "run.name": self.run.name,
            "data.train_split": self.data.train_split,
            "data.val_split": self.data.val_split,
        }
        if self.search.name:
            folders["search.name"] = self.search.name
        for key, name in folders.items():
            if {"", ".", ".."}.intersection(name.split("/")):
                raise UserError(f"{key} {name!r} names no folder of its own: give a name without empty parts, . and ..")
        if "://" in self.data.cache_folder:
            raise UserError(
                f"data.cache_folder {self.data.cache_folder}: not a folder on the hosts' own disks; name one"
            )
        self.model.require_fit(self.image_shape)
        for section, wanted in (("sample", self.sample.conditional), ("evaluate", self.evaluate.conditional)):
            if not wanted and not (isinstance(self.model, GatedPixelCNNModel) and self.model.condition_dropout):
                raise UserError(
                    f"{section}.conditional is false, but the model was never trained without labels: train a "
                    "gated-pixelcnn with model.condition_dropout above 0"
                )
        return self

    @property
    def evaluated_split(self) -> str:
        """The split that `evaluate` measures."""
        return self.evaluate.split or self.data.val_split

    @property
    def dims(self) -> int:
        """Sub-pixels of an image."""
        return self.data.channels * self.data.image_size**2

    @property
    def image_shape(self) -> ImageShape:
        """What a model must know of the images."""
        data = self.data
        return ImageShape(
            image_size=data.image_size, channels=data.channels, levels=data.levels, num_classes=data.num_classes
        )

    def build_model(self) -> TrainableModel:
        """The model with random weights from torch's global generator."""
        return self.model.build(self.image_shape)

    def empty_model(self) -> TrainableModel:
        """The model without memory, for its shapes, parameters and FLOPs."""
        with torch.device("meta"):
            return self.build_model()


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
READING_KEYS = (
    "data.url",
    "data.source",
    "data.source_format",
    "data.max_unreadable",
    "data.on_bad_shard",
    "data.cache_folder",
    "data.cache_gigabytes",
    "data.parallel_reads",
    "data.prefetch_batches",
    "data.decoded_gigabytes",
)


def changed_result_keys(before: Config, now: Config, *also: str) -> list[str]:
    """Keys, with both values, that would change what a run trains; where data lie and how often it speaks don't.

    Args:
        also: keys that must not change either.
    """
    old, new = flatten(before), flatten(now)
    results = [key for key in sorted(new) if key.split(".")[0] in RESULT_SECTIONS and key not in READING_KEYS]
    return [f"{key} (was {old[key]!r}, now {new[key]!r})" for key in [*results, *also] if old[key] != new[key]]
