"""Named configurations, each with its data version, cost and the bits/dim to expect."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import Cluster, Config, Data, Evaluation, Run, Sampling, Training
from pipeline.model_config import (
    AutoEncoderModel,
    EmbeddingModel,
    GatedPixelCNNModel,
    Model,
    MSEAutoEncoderModel,
    NestedEmbedding,
    PixelCNNModel,
    PixelRNNModel,
    PortraitModel,
)


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


def _cifar10(**changes: str | int) -> Data:
    values = {
        "name": "cifar10",
        "url": "data/cifar10",
        "source_format": "cifar10-binary",
        "image_size": 32,
        "channels": 3,
        "levels": 256,
        "val_split": "test",
        "records_per_shard": 2000,
    }
    return Data.model_validate(values | changes)


GPUS = Cluster(num_workers=8, use_gpu=True, cpus_per_worker=4, assumed_tflops=200.0, dollars_per_worker_hour=4.0)
ONE_GPU = GPUS.model_copy(update={"num_workers": 1})


def _cifar10_small(name: str, model: Model, steps: int) -> Config:
    """A run on two CPU cores."""
    return Config(
        preset=name,
        model=model,
        data=_cifar10(),
        train=Training(steps=steps, batch_size=16, learning_rate=2e-3, warmup_steps=100, ema_decay=0.995),
        run=Run(name=name, log_interval=20, eval_interval=1300, sample_interval=1300, checkpoint_interval=200),
        sample=Sampling(count=40, grid_columns=4, batch_size=20),
    )


def _cifar10_pixelrnn(name: str, model: Model) -> Config:
    """Section 5.1 to 5.5 of arXiv 1601.06759: batches of 16; RMSProp's place is taken by AdamW, schedule ours."""
    return Config(
        preset=name,
        model=model,
        data=_cifar10(),
        train=Training(steps=300_000, batch_size=16, learning_rate=5e-4, warmup_steps=1000, ema_decay=0.9998),
        run=Run(name=name, log_interval=50, eval_interval=5000, sample_interval=10_000, checkpoint_interval=1000),
        cluster=ONE_GPU,
        evaluate=Evaluation(batch_size=500),
    )


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
        cluster=GPUS,
        evaluate=Evaluation(batch_size=128),
        sample=Sampling(count=64, grid_columns=8, batch_size=64),
    )


def _digits(name: str, model: Model, **data: Any) -> Config:
    return Config(
        preset=name,
        model=model,
        data=Data(**data),
        train=Training(steps=1200, batch_size=64, learning_rate=3e-3, warmup_steps=50, ema_decay=0.995),
        run=Run(name=name, log_interval=50, eval_interval=300, sample_interval=300, checkpoint_interval=200),
    )


def _faces(name: str, model: Model, data: Data, **sections: Any) -> Config:
    return Config(preset=name, model=model, data=data, **sections)


FACES = Data(
    name="faces",
    url="data/faces",
    source_format="npz",
    image_size=32,
    channels=1,
    levels=256,
    num_classes=40,
    resize="center-crop-box",
    holdout="classes",
    records_per_shard=100,
)
PORTRAITS = Data(
    name="portraits",
    url="data/portraits",
    source_format="class-folders",
    image_size=32,
    channels=3,
    levels=256,
    num_classes=1000,
    resize="center-crop-box",
    holdout="classes",
    holdout_fraction=0.02,
    records_per_shard=10_000,
)
H, HEAD = 129, 1026
"""PixelRNN's h = 128 and its head's 1,024 filters (Table 1), the nearest that three colours divide."""
IMAGENET_GATED = GatedPixelCNNModel(num_layers=20, num_filters=384, kernel_size=5, head_filters=HEAD, conditional=False)
"""Section 3.1 of the paper; the head's 1,026 filters are the nearest to PixelRNN's 1,024 that three colours divide."""
FACE_EMBEDDING = EmbeddingModel(code_size=32, encoder_filters=16)
PORTRAIT_EMBEDDING = EmbeddingModel(code_size=128, encoder_filters=64)

DIGITS = "digits-8-none, 1,797 grey 8x8 images of 17 levels that come with scikit-learn"
CIFAR10 = "cifar10-32-none, the official CIFAR-10 train and test split"
ORL = "faces-32-center-crop-box, the ORL faces (data.source att_faces.npz): 36 people to train on, 4 held out"
OWN_PORTRAITS = "portraits-32-center-crop-box, your own folder of people, 2% of them held out"
NOT_MEASURED = "see --dry-run; not yet measured on a GPU"

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        _digits(
            "digits", GatedPixelCNNModel(num_layers=6, num_filters=32, kernel_size=5, head_filters=64, dropout=0.2)
        ),
        data_version=DIGITS,
        cost="two minutes of training on two CPU cores",
        expect="1.63 bits/dim on the 179 held-out images, measured in benchmarks/digits.md",
    ),
    "digits-binary": Preset(
        _digits(
            "digits-binary",
            PixelRNNModel(kind="diagonal-bilstm", num_layers=3, num_filters=16, head_filters=32),
            levels=2,
            url="data/digits-binary",
        ),
        data_version="digits-8-none-2levels, the same digits in black and white",
        cost="two to five minutes on two CPU cores",
        expect="nats an image instead of bits/dim to compare by; see docs/models.md",
    ),
    "digits-autoencoder": Preset(
        _digits(
            "digits-autoencoder",
            AutoEncoderModel(num_layers=6, num_filters=32, head_filters=64, code_size=10, dropout=0.2),
        ),
        data_version=DIGITS,
        cost="two to four minutes on two CPU cores",
        expect="1.38 bits/dim given h on the 179 held-out images, docs/models.md",
    ),
    "digits-mse": Preset(
        _digits("digits-mse", MSEAutoEncoderModel(code_size=10)),
        data_version=DIGITS,
        cost="a minute on two CPU cores",
        expect="mean squared error 0.0087 on the 179 held-out images, docs/models.md",
    ),
    "cifar10-small": Preset(
        _cifar10_small(
            "cifar10-small", GatedPixelCNNModel(num_layers=5, num_filters=48, kernel_size=5, head_filters=96), 2600
        ),
        data_version=CIFAR10,
        cost="half an hour on two CPU cores",
        expect="4.33 bits/dim on test, measured in benchmarks/cifar10.md; below the Gaussian's 4.70 of Table 1",
    ),
    "cifar10-pixelcnn-small": Preset(
        _cifar10_small("cifar10-pixelcnn-small", PixelCNNModel(num_layers=5, num_filters=48, head_filters=96), 2600),
        data_version=CIFAR10,
        cost="not yet measured; steps as in cifar10-small",
        expect="not yet measured",
    ),
    "cifar10-row-lstm-small": Preset(
        _cifar10_small(
            "cifar10-row-lstm-small",
            PixelRNNModel(kind="row-lstm", num_layers=3, num_filters=33, head_filters=96),
            2600,
        ),
        data_version=CIFAR10,
        cost="not yet measured; steps as in cifar10-small",
        expect="not yet measured",
    ),
    "cifar10-diagonal-bilstm-small": Preset(
        _cifar10_small(
            "cifar10-diagonal-bilstm-small",
            PixelRNNModel(kind="diagonal-bilstm", num_layers=3, num_filters=33, head_filters=96),
            2600,
        ),
        data_version=CIFAR10,
        cost="not yet measured; steps as in cifar10-small",
        expect="not yet measured",
    ),
    "cifar10": Preset(
        Config(
            preset="cifar10",
            model=GatedPixelCNNModel(
                num_layers=15, num_filters=192, kernel_size=5, head_filters=384, dropout=0.2, conditional=False
            ),
            data=_cifar10(),
            train=Training(steps=100_000, batch_size=128, learning_rate=1e-3, warmup_steps=1000, ema_decay=0.9998),
            run=Run(
                name="cifar10", log_interval=50, eval_interval=2000, sample_interval=5000, checkpoint_interval=1000
            ),
            cluster=ONE_GPU,
            evaluate=Evaluation(batch_size=500),
        ),
        data_version=CIFAR10,
        cost=NOT_MEASURED,
        expect="3.03 bits/dim on test, arXiv 1606.05328, Table 1; the recipe is ours and not yet measured",
    ),
    "cifar10-pixelcnn": Preset(
        _cifar10_pixelrnn("cifar10-pixelcnn", PixelCNNModel(num_layers=15, num_filters=H, head_filters=HEAD)),
        data_version=CIFAR10,
        cost=NOT_MEASURED,
        expect="3.14 bits/dim on test, arXiv 1601.06759, Table 5; the recipe is ours and not yet measured",
    ),
    "cifar10-row-lstm": Preset(
        _cifar10_pixelrnn(
            "cifar10-row-lstm", PixelRNNModel(kind="row-lstm", num_layers=12, num_filters=H, head_filters=HEAD)
        ),
        data_version=CIFAR10,
        cost=NOT_MEASURED,
        expect="3.07 bits/dim on test, arXiv 1601.06759, Table 5; the recipe is ours and not yet measured",
    ),
    "cifar10-diagonal-bilstm": Preset(
        _cifar10_pixelrnn(
            "cifar10-diagonal-bilstm",
            PixelRNNModel(kind="diagonal-bilstm", num_layers=12, num_filters=H, head_filters=HEAD),
        ),
        data_version=CIFAR10,
        cost=NOT_MEASURED,
        expect="3.00 bits/dim on test, arXiv 1601.06759, Table 5; the recipe is ours and not yet measured",
    ),
    "imagenet32": Preset(
        _imagenet(32, "imagenet32", IMAGENET_GATED),
        data_version="imagenet32-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost="see --dry-run; the paper's took 60 hours on 32 GPUs",
        expect="3.83 bits/dim on validation, arXiv 1606.05328, Table 2, whose downsampling is another: not comparable",
    ),
    "imagenet64": Preset(
        _imagenet(64, "imagenet64", IMAGENET_GATED),
        data_version="imagenet64-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost="see --dry-run",
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
    "faces-embedding": Preset(
        _faces(
            "faces-embedding",
            FACE_EMBEDDING,
            FACES,
            train=Training(steps=300, batch_size=120, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99),
            run=Run(name="faces-embedding", log_interval=20, eval_interval=100, checkpoint_interval=200),
            cluster=Cluster(num_workers=1, cpus_per_worker=2),
            evaluate=Evaluation(batch_size=40),
        ),
        data_version=ORL,
        cost="a minute on two CPU cores",
        expect="triplet loss 0.058 on the 4 people held out, docs/models.md",
    ),
    "faces": Preset(
        _faces(
            "faces",
            PortraitModel(
                num_layers=6,
                num_filters=32,
                head_filters=64,
                dropout=0.2,
                embedding=NestedEmbedding(**dict(FACE_EMBEDDING)),
                embedding_run="runs/faces-embedding",
            ),
            FACES,
            train=Training(steps=1000, batch_size=16, learning_rate=2e-3, warmup_steps=100, ema_decay=0.995),
            run=Run(name="faces", log_interval=20, eval_interval=200, sample_interval=1000, checkpoint_interval=200),
            evaluate=Evaluation(batch_size=20),
            sample=Sampling(count=32, grid_columns=8, batch_size=16),
        ),
        data_version=ORL,
        cost="six minutes on two CPU cores",
        expect="5.26 bits/dim given h on the 4 people held out, docs/models.md; face-like, not yet faces",
    ),
    "portraits-embedding": Preset(
        _faces(
            "portraits-embedding",
            PORTRAIT_EMBEDDING,
            PORTRAITS,
            train=Training(steps=100_000, batch_size=1800, learning_rate=5e-4, warmup_steps=1000, ema_decay=0.999),
            run=Run(name="portraits-embedding", log_interval=50, eval_interval=2000, checkpoint_interval=1000),
            cluster=ONE_GPU,
            evaluate=Evaluation(batch_size=1800),
        ),
        data_version=OWN_PORTRAITS,
        cost=NOT_MEASURED,
        expect="a triplet loss near 0; FaceNet's batches of about 1,800 so that each person is there several times",
    ),
    "portraits": Preset(
        _faces(
            "portraits",
            PortraitModel(
                num_layers=20,
                num_filters=384,
                head_filters=HEAD,
                embedding=NestedEmbedding(**dict(PORTRAIT_EMBEDDING)),
                embedding_run="runs/portraits-embedding",
            ),
            PORTRAITS,
            train=Training(
                steps=200_000, batch_size=128, learning_rate=3e-4, warmup_steps=2000, beta2=0.95, ema_decay=0.9999
            ),
            run=Run(
                name="portraits",
                log_interval=100,
                eval_interval=10_000,
                sample_interval=10_000,
                checkpoint_interval=2000,
            ),
            cluster=GPUS,
            evaluate=Evaluation(batch_size=128),
            sample=Sampling(count=64, grid_columns=8, batch_size=64),
        ),
        data_version=OWN_PORTRAITS,
        cost=NOT_MEASURED,
        expect="the portraits of arXiv 1606.05328, Fig. 4 and 5; the paper states no likelihood",
    ),
}
