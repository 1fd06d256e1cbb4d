"""What a run costs before it starts: parameters, FLOPs, and hours and dollars at an assumed rate."""

import json

from models.trainable import count_parameters
from pipeline.config import Config
from pipeline.presets import PRESETS

TRAINING_PASSES = 3
"""A training step takes the forward pass and about twice as much backward."""


def training_flops(config: Config) -> int:
    """FLOPs that training spends on an image."""
    size = config.data.image_size
    return TRAINING_PASSES * config.empty_model().flops(size, size)


def describe(config: Config) -> str:
    """The resolved configuration, its size and the estimate, as `--dry-run` prints them."""
    model = config.empty_model()
    size = config.data.image_size
    forward = model.flops(size, size)
    images = config.train.steps * config.train.batch_size
    training = TRAINING_PASSES * forward * images
    workers = max(1, config.cluster.num_workers)
    hours = training / (config.cluster.assumed_tflops * 1e12 * workers) / 3600
    dollars = hours * workers * config.cluster.dollars_per_worker_hour
    lines = [
        json.dumps(config.model_dump(), indent=2),
        f"preset: {PRESETS[config.preset].summary}",
        f"parameters: {count_parameters(model):,}",
        f"FLOPs an image: {forward / 1e9:.4g} GFLOP forward, {TRAINING_PASSES * forward / 1e9:.4g} GFLOP in training",
        f"training: {config.train.steps:,} steps of {config.train.batch_size} = {images:,} images, "
        f"{training / 1e15:.4g} PFLOP",
        f"estimate: {hours:.2f} hours on {workers} workers at an assumed {config.cluster.assumed_tflops} TFLOP/s each "
        f"(cluster.assumed_tflops; measure yours), {dollars:.2f} dollars at "
        f"{config.cluster.dollars_per_worker_hour} a worker-hour (cluster.dollars_per_worker_hour)",
    ]
    return "\n".join(lines)
