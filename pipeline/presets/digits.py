"""The digits that come with scikit-learn: minutes on a laptop."""

from typing import Any

from pipeline.config import Config, Data, Run, Training
from pipeline.model_config import AutoEncoderModel, GatedPixelCNNModel, Model, MSEAutoEncoderModel, PixelRNNModel
from pipeline.presets.preset import Preset

VERSION = "digits-8-none, 1,797 grey 8x8 images of 17 levels that come with scikit-learn"


def _digits(name: str, model: Model, **data: Any) -> Config:
    return Config(
        preset=name,
        model=model,
        data=Data(**data),
        train=Training(steps=1200, batch_size=64, learning_rate=3e-3, warmup_steps=50, ema_decay=0.995),
        run=Run(name=name, log_interval=50, eval_interval=300, sample_interval=300, checkpoint_interval=200),
    )


DIGITS: dict[str, Preset] = {
    "digits": Preset(
        _digits(
            "digits", GatedPixelCNNModel(num_layers=6, num_filters=32, kernel_size=5, head_filters=64, dropout=0.2)
        ),
        data_version=VERSION,
        cost="two minutes of training on two CPU cores",
        expect="1.64 bits/dim on the 179 held-out images, measured in benchmarks/digits.md",
    ),
    "digits-binary": Preset(
        _digits(
            "digits-binary",
            PixelRNNModel(kind="diagonal-bilstm", num_layers=3, num_filters=16, head_filters=32),
            levels=2,
            url="data/digits-binary",
        ),
        data_version="digits-8-none-2levels, the same digits in black and white",
        cost="two minutes on two CPU cores",
        expect="17.9 nats an image on the 179 held-out images, docs/models.md",
    ),
    "digits-autoencoder": Preset(
        _digits(
            "digits-autoencoder",
            AutoEncoderModel(num_layers=6, num_filters=32, head_filters=64, code_size=10, dropout=0.2),
        ),
        data_version=VERSION,
        cost="two to four minutes on two CPU cores",
        expect="1.37 bits/dim given h on the 179 held-out images, docs/models.md",
    ),
    "digits-mse": Preset(
        _digits("digits-mse", MSEAutoEncoderModel(code_size=10)),
        data_version=VERSION,
        cost="a minute on two CPU cores",
        expect="mean squared error 0.0087 on the 179 held-out images, docs/models.md",
    ),
}
