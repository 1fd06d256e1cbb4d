"""ImageNet at the paper's sizes."""

from pipeline.config import Config, Data, Evaluation, Run, Sampling, Training
from pipeline.model_config import AutoEncoderModel, GatedPixelCNNModel, Model, MSEAutoEncoderModel
from pipeline.presets.preset import GPUS, HEAD, NOT_MEASURED, Preset

IMAGENET_GATED = GatedPixelCNNModel(num_layers=20, num_filters=384, kernel_size=5, head_filters=HEAD, conditional=False)
"""Section 3.1 of the paper; the head's 1,026 filters are the nearest to PixelRNN's 1,024 that three colours divide."""

H100_TFLOPS = 500.0
"""Measured on one H100 in a step of `imagenet32` (128 images) and `imagenet64` (32), benchmarks/gpu.md, rounded."""


def _imagenet(size: int, name: str, model: Model) -> Config:
    """Section 3.1 of the paper: batch 128, 200K steps; optimiser, its schedule and the averaged weights are ours."""
    return Config(
        preset=name,
        model=model,
        data=Data(
            name=f"imagenet{size}",
            url=f"data/imagenet{size}",
            source_format="class-folders",
            image_size=size,
            channels=3,
            levels=256,
            num_classes=1000,
            resize="box",
            records_per_shard=10_000,
        ),
        train=Training(
            steps=200_000, batch_size=128, learning_rate=3e-4, warmup_steps=2000, beta2=0.95, ema_decay=0.9999
        ),
        run=Run(
            name=name,
            log_interval=100,
            eval_interval=10_000,
            sample_interval=10_000,
            checkpoint_interval=2000,
            keep_checkpoints=3,
        ),
        cluster=GPUS.model_copy(update={"assumed_tflops": H100_TFLOPS}),
        evaluate=Evaluation(batch_size=128),
        sample=Sampling(count=64, grid_columns=8, batch_size=64),
    )


IMAGENET: dict[str, Preset] = {
    "imagenet32": Preset(
        _imagenet(32, "imagenet32", IMAGENET_GATED),
        data_version="imagenet32-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost="10.0 hours on one H100 by a measured step; the paper's took 60 hours on 32 GPUs",
        expect="3.83 bits/dim on validation, arXiv 1606.05328, Table 2, whose downsampling is another: not comparable",
    ),
    "imagenet64": Preset(
        _imagenet(64, "imagenet64", IMAGENET_GATED),
        data_version="imagenet64-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost="39 hours on one H100 by a measured step of 32 images",
        expect="3.57 bits/dim on validation, arXiv 1606.05328, Table 2, whose downsampling is another: not comparable",
    ),
    "imagenet32-autoencoder": Preset(
        _imagenet(
            32,
            "imagenet32-autoencoder",
            AutoEncoderModel(num_layers=20, num_filters=384, head_filters=HEAD, code_size=100, encoder_filters=64),
        ),
        data_version="imagenet32-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost=NOT_MEASURED,
        expect="the reconstructions of arXiv 1606.05328, Fig. 6; the paper states m = 10 and 100 and no likelihood",
    ),
    "imagenet32-mse": Preset(
        _imagenet(32, "imagenet32-mse", MSEAutoEncoderModel(code_size=100, encoder_filters=64)),
        data_version="imagenet32-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost=NOT_MEASURED,
        expect="the blurred reconstructions of arXiv 1606.05328, Fig. 6",
    ),
}
