"""CIFAR-10: small models for two CPU cores, and the papers' sizes."""

from typing import Any

from pipeline.config import Config, Data, Evaluation, Run, Sampling, Training
from pipeline.model_config import GatedPixelCNNModel, Model, PixelCNNModel, PixelRNNModel
from pipeline.presets.preset import HEAD, NOT_MEASURED, ONE_GPU, H, Preset

H200_TFLOPS = 252.0
"""Measured in a run of `cifar10` on one H200: benchmarks/gpu.md."""
VERSION = "cifar10-32-none, the official CIFAR-10 train and test split"
LOGITS: dict[str, Any] = {"logit_scale": 8.0, "trained_logit_scale": True}
BESIDE_MUON: dict[str, Any] = {"learning_rate": 4e-3, "beta2": 0.95, "noisy_images": 0.1}
"""With both, and a rate of Muon's, all three kinds of model learn in far fewer steps: docs/experiments.md."""


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


def _cifar10_small(name: str, model: Model, steps: int, muon_learning_rate: float, weight_decay: float) -> Config:
    """A run on two CPU cores."""
    return Config(
        preset=name,
        model=model,
        data=_cifar10(),
        train=Training(
            steps=steps,
            batch_size=16,
            muon_learning_rate=muon_learning_rate,
            weight_decay=weight_decay,
            warmup_steps=100,
            ema_decay=0.995,
            **BESIDE_MUON,
        ),
        run=Run(name=name, log_interval=20, eval_interval=1300, sample_interval=1300, checkpoint_interval=200),
        sample=Sampling(count=40, grid_columns=4, batch_size=20),
    )


def _cifar10_pixelrnn(name: str, model: Model) -> Config:
    """Section 5.1 to 5.5 of arXiv 1601.06759: batches of 16; RMSProp's place is taken by Muon, schedule ours."""
    return Config(
        preset=name,
        model=model,
        data=_cifar10(),
        train=Training(
            steps=300_000,
            batch_size=16,
            muon_learning_rate=0.01,
            weight_decay=0.003,
            warmup_steps=1000,
            ema_decay=0.9998,
            **BESIDE_MUON,
        ),
        run=Run(name=name, log_interval=50, eval_interval=5000, sample_interval=10_000, checkpoint_interval=1000),
        cluster=ONE_GPU,
        evaluate=Evaluation(batch_size=500),
    )


CIFAR10: dict[str, Preset] = {
    "cifar10-small": Preset(
        _cifar10_small(
            "cifar10-small",
            GatedPixelCNNModel(num_layers=8, num_filters=48, kernel_size=3, head_filters=96, **LOGITS),
            2600,
            muon_learning_rate=0.04,
            weight_decay=0.03,
        ),
        data_version=VERSION,
        cost="20 minutes on two CPU cores",
        expect="3.55 bits/dim on test, measured in benchmarks/cifar10.md",
    ),
    "cifar10-pixelcnn-small": Preset(
        _cifar10_small(
            "cifar10-pixelcnn-small",
            PixelCNNModel(num_layers=5, num_filters=48, head_filters=96, **LOGITS),
            1601,
            muon_learning_rate=0.02,
            weight_decay=0.01,
        ),
        data_version=VERSION,
        cost="five minutes of training on two CPU cores",
        expect="3.73 bits/dim on test, measured in benchmarks/equal_budget.md",
    ),
    "cifar10-row-lstm-small": Preset(
        _cifar10_small(
            "cifar10-row-lstm-small",
            PixelRNNModel(kind="row-lstm", num_layers=3, num_filters=33, head_filters=96, **LOGITS),
            988,
            muon_learning_rate=0.04,
            weight_decay=0.01,
        ),
        data_version=VERSION,
        cost="five minutes of training on two CPU cores",
        expect="3.83 bits/dim on test, measured in benchmarks/equal_budget.md",
    ),
    "cifar10-diagonal-bilstm-small": Preset(
        _cifar10_small(
            "cifar10-diagonal-bilstm-small",
            PixelRNNModel(kind="diagonal-bilstm", num_layers=3, num_filters=33, head_filters=96, **LOGITS),
            693,
            muon_learning_rate=0.04,
            weight_decay=0.01,
        ),
        data_version=VERSION,
        cost="five minutes of training on two CPU cores",
        expect="3.86 bits/dim on test, measured in benchmarks/equal_budget.md",
    ),
    "cifar10": Preset(
        Config(
            preset="cifar10",
            model=GatedPixelCNNModel(
                num_layers=12,
                num_filters=288,
                kernel_size=3,
                head_filters=384,
                conditional=False,
                **LOGITS,
            ),
            data=_cifar10(),
            train=Training(
                steps=23_000,
                batch_size=64,
                muon_learning_rate=0.02,
                weight_decay=0.005,
                warmup_steps=500,
                ema_decay=0.999,
                horizontal_flips=True,
                **BESIDE_MUON,
            ),
            run=Run(
                name="cifar10",
                log_interval=100,
                eval_interval=4000,
                sample_interval=12_000,
                checkpoint_interval=2000,
                compile="reduce-overhead",
            ),
            cluster=ONE_GPU.model_copy(update={"assumed_tflops": H200_TFLOPS}),
            evaluate=Evaluation(batch_size=500),
        ),
        data_version=VERSION,
        cost="12 minutes on one H200, measured in benchmarks/gpu.md",
        expect="3.02 bits/dim on test, measured in benchmarks/gpu.md; the paper has 3.03, arXiv 1606.05328, Table 1; "
        "the recipe, with flips, is ours",
    ),
    "cifar10-pixelcnn": Preset(
        _cifar10_pixelrnn("cifar10-pixelcnn", PixelCNNModel(num_layers=15, num_filters=H, head_filters=HEAD, **LOGITS)),
        data_version=VERSION,
        cost=NOT_MEASURED,
        expect="3.14 bits/dim on test, arXiv 1601.06759, Table 5; the recipe is ours and not yet measured",
    ),
    "cifar10-row-lstm": Preset(
        _cifar10_pixelrnn(
            "cifar10-row-lstm",
            PixelRNNModel(kind="row-lstm", num_layers=12, num_filters=H, head_filters=HEAD, **LOGITS),
        ),
        data_version=VERSION,
        cost=NOT_MEASURED,
        expect="3.07 bits/dim on test, arXiv 1601.06759, Table 5; the recipe is ours and not yet measured",
    ),
    "cifar10-diagonal-bilstm": Preset(
        _cifar10_pixelrnn(
            "cifar10-diagonal-bilstm",
            PixelRNNModel(kind="diagonal-bilstm", num_layers=12, num_filters=H, head_filters=HEAD, **LOGITS),
        ),
        data_version=VERSION,
        cost=NOT_MEASURED,
        expect="3.00 bits/dim on test, arXiv 1601.06759, Table 5; the recipe is ours and not yet measured",
    ),
}
