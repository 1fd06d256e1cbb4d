"""Named configurations, each with its data version, cost and the bits/dim to expect."""

from dataclasses import dataclass

from pipeline.config import Cluster, Config, Data, Evaluation, Model, Run, Sampling, Training


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


def _imagenet(size: int) -> Config:
    """Section 3.1 of the paper: 20 layers, 384 filters, 5x5, batch 128, 200K steps, without labels.

    Optimiser, its schedule, the averaged weights and the head's 1,026 filters (the nearest to PixelRNN's 1,024 that
    three colours divide) are our choice; `--model.conditional` gives section 3.2's class-conditional model.
    """
    name = f"imagenet{size}"
    return Config(
        preset=name,
        model=Model(num_layers=20, num_filters=384, kernel_size=5, head_filters=1026, conditional=False),
        data=Data(
            name=name,
            url=f"data/{name}",
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
        cluster=Cluster(
            num_workers=8, use_gpu=True, cpus_per_worker=4, assumed_tflops=200.0, dollars_per_worker_hour=4.0
        ),
        evaluate=Evaluation(batch_size=128),
        sample=Sampling(count=64, grid_columns=8, batch_size=64),
    )


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        Config(
            model=Model(num_layers=6, num_filters=32, kernel_size=5, head_filters=64, dropout=0.2),
            train=Training(steps=1200, batch_size=64, learning_rate=3e-3, warmup_steps=50, ema_decay=0.995),
            run=Run(log_interval=50, eval_interval=300, sample_interval=300, checkpoint_interval=200),
        ),
        data_version="digits-8-none, 1,797 grey 8x8 images of 17 levels that come with scikit-learn",
        cost="two minutes of training on two CPU cores",
        expect="1.63 bits/dim on the 179 held-out images, measured in benchmarks/digits.md",
    ),
    "cifar10-small": Preset(
        Config(
            preset="cifar10-small",
            model=Model(num_layers=5, num_filters=48, kernel_size=5, head_filters=96),
            data=_cifar10(),
            train=Training(steps=2600, batch_size=16, learning_rate=2e-3, warmup_steps=100, ema_decay=0.995),
            run=Run(
                name="cifar10-small",
                log_interval=20,
                eval_interval=1300,
                sample_interval=1300,
                checkpoint_interval=200,
            ),
            sample=Sampling(count=40, grid_columns=4, batch_size=20),
        ),
        data_version="cifar10-32-none, the official CIFAR-10 train and test split",
        cost="half an hour on two CPU cores",
        expect="4.33 bits/dim on test, measured in benchmarks/cifar10.md; below the Gaussian's 4.70 of Table 1",
    ),
    "cifar10": Preset(
        Config(
            preset="cifar10",
            model=Model(
                num_layers=15, num_filters=192, kernel_size=5, head_filters=384, dropout=0.2, conditional=False
            ),
            data=_cifar10(),
            train=Training(steps=100_000, batch_size=128, learning_rate=1e-3, warmup_steps=1000, ema_decay=0.9998),
            run=Run(
                name="cifar10", log_interval=50, eval_interval=2000, sample_interval=5000, checkpoint_interval=1000
            ),
            cluster=Cluster(
                num_workers=1, use_gpu=True, cpus_per_worker=4, assumed_tflops=200.0, dollars_per_worker_hour=4.0
            ),
            evaluate=Evaluation(batch_size=500),
        ),
        data_version="cifar10-32-none, the official CIFAR-10 train and test split",
        cost="see --dry-run; not yet measured on a GPU",
        expect="3.03 bits/dim on test, arXiv 1606.05328, Table 1; the recipe is ours and not yet measured",
    ),
    "imagenet32": Preset(
        _imagenet(32),
        data_version="imagenet32-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost="see --dry-run; the paper's took 60 hours on 32 GPUs",
        expect="3.83 bits/dim on validation, arXiv 1606.05328, Table 2, whose downsampling is another: not comparable",
    ),
    "imagenet64": Preset(
        _imagenet(64),
        data_version="imagenet64-box, ILSVRC2012 by Pillow's BOX as in arXiv 1707.08819",
        cost="see --dry-run",
        expect="3.57 bits/dim on validation, arXiv 1606.05328, Table 2, whose downsampling is another: not comparable",
    ),
}
