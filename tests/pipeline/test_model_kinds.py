"""Every kind of model through the same loop on digits, and what is drawn from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.trainable import TrainableModel
from pipeline.checkpoint import newest_sound
from pipeline.config import Config
from pipeline.drawing import draw_and_write, samples_url
from pipeline.errors import UserError
from pipeline.learner import run_url_of
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare
from pipeline.presets import PRESETS
from tests.conftest import LocalWorker, tiny_config
from tests.pipeline.test_train import changed, fit

GATED: dict[str, Any] = {"num_layers": 2, "num_filters": 8, "head_filters": 8, "kernel_size": 3}
KINDS: dict[str, dict[str, Any]] = {
    "pixelcnn": {"num_layers": 1, "num_filters": 8, "head_filters": 8},
    "row-lstm": {"num_layers": 1, "num_filters": 8, "head_filters": 8},
    "diagonal-bilstm": {"num_layers": 1, "num_filters": 8, "head_filters": 8},
    "pixelcnn-autoencoder": GATED | {"code_size": 3, "encoder_filters": 4, "condition_form": "map"},
    "mse-autoencoder": {"code_size": 3, "encoder_filters": 4},
    "portrait-embedding": {"code_size": 4, "encoder_filters": 4},
}


@pytest.fixture(params=["float32", "bfloat16"])
def digits(digits: Config, request: pytest.FixtureRequest) -> Config:
    """The tiny configuration as it runs on CPUs, and as it runs on GPUs."""
    return changed(digits, run={"precision": request.param})


def of_kind(config: Config, kind: str, name: str = "", **changes: Any) -> Config:
    tree = config.model_dump() | {"model": {"kind": kind} | KINDS.get(kind, {}) | changes}
    tree["run"] |= {"name": name or kind, "sample_interval": 12}
    tree["sample"] |= {"count": 4, "grid_columns": 2}
    tree["train"] |= {"steps": 6}
    return Config.model_validate(tree)


def trained(config: Config) -> TrainableModel:
    model = config.build_model()
    with newest_sound(run_url_of(config)) as checkpoint:
        assert checkpoint is not None
        model.load_state_dict(checkpoint.weights(averaged=True))
    return model.eval()


def drawn_from(config: Config, **sample: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of the images and their arrays."""
    config = config.model_copy(update={"sample": config.sample.model_copy(update=sample)})
    folder = Path(samples_url(config, run_url_of(config), "last", "weights"))
    manifest = load_manifest(config, "val")
    drawn = draw_and_write(config, trained(config), manifest, LocalWorker(""), str(folder), "weights")
    with np.load(folder / "samples.npz") as arrays:
        assert drawn is not None
        assert drawn.count == len(arrays["images"]) == len(list(folder.glob("images/*.png")))
        return folder, dict(arrays)


def size_of(folder: Path) -> tuple[int, int]:
    return Image.open(folder / "samples.png").size


@pytest.mark.parametrize("kind", ["pixelcnn", "row-lstm", "diagonal-bilstm"])
def test_density_models_train_and_draw(kind: str, digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = of_kind(digits, kind, logit_scale=8.0, trained_logit_scale=True)
    config = changed(config, train={"muon_learning_rate": 0.04, "noisy_images": 0.1})
    metrics = fit(config)
    assert 2.0 < metrics["val/bits_per_dim"] < 4.2
    assert "bits/dim" in capsys.readouterr().out
    assert drawn_from(config)[1]["images"].shape == (4, 1, 8, 8)


def test_auto_encoder_shows_original_mse_reconstruction_and_draws(digits: Config) -> None:
    mse, config = of_kind(digits, "mse-autoencoder"), of_kind(digits, "pixelcnn-autoencoder")
    metrics = fit(mse)
    assert 0.0 < metrics["val/mean_squared_error"] < 0.3
    assert "val/bits_per_dim" not in metrics
    assert fit(config)["val/bits_per_dim"] < 4.2
    drawn, arrays = drawn_from(config, mse_run=run_url_of(mse))
    assert arrays["originals"].shape == arrays["mse_reconstructions"].shape == (2, 1, 8, 8)
    assert arrays["images"].shape == (4, 1, 8, 8)
    cell = 42  # an 8x8 image five times as large, and its line
    assert size_of(drawn) == (cell * 4, cell * 2)
    alone, arrays = drawn_from(mse)
    assert len(arrays["images"]) == 0
    assert size_of(alone) == (cell * 2, cell * 2)
    with pytest.raises(UserError, match="trained a pixelcnn-autoencoder: name the run of an mse-autoencoder"):
        drawn_from(config, mse_run=run_url_of(config))
    with pytest.raises(UserError, match="nowhere: no checkpoint; train an MSE auto-encoder first"):
        drawn_from(config, mse_run=f"{digits.run.url}/nowhere")


def test_portraits_take_the_trained_embedding_and_interpolate(digits: Config) -> None:
    embedding = of_kind(digits, "portrait-embedding")
    assert fit(embedding)["val/triplet_loss"] > 0.0
    with pytest.raises(UserError, match=r"model\.kind portrait-embedding draws no images"):
        drawn_from(embedding)
    nested = embedding.model.model_dump()
    config = of_kind(digits, "portrait-pixelcnn", **GATED, embedding=nested, embedding_run=run_url_of(embedding))
    fit(config)
    kept, source = trained(config).state_dict(), trained(embedding).state_dict()
    assert all(torch.equal(kept[f"encoder.{name}"], weights) for name, weights in source.items())
    drawn, arrays = drawn_from(config, interpolate=True)
    assert arrays["originals"].shape == (3, 1, 8, 8)
    assert size_of(drawn) == (42 * 4, 42 * 2)
    vectors = arrays["vectors"].reshape(2, 2, 4)  # a row goes from one original's h to the next one's
    codes = trained(config).encode(torch.from_numpy(arrays["originals"])).detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(vectors, np.stack([codes[:-1], codes[1:]], axis=1), atol=1e-5)
    _, other = drawn_from(config)
    assert other["originals"].shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"embedding_run": ""}, "model.embedding_run is empty: name the folder"),
        ({"embedding_run": "/nowhere"}, "model.embedding_run /nowhere: no checkpoint; train the embedding first"),
    ],
)
def test_portraits_without_an_embedding_say_what_is_missing(changes: dict[str, str], told: str, digits: Config) -> None:
    with pytest.raises(UserError, match=told):
        fit(of_kind(digits, "portrait-pixelcnn", **GATED, **changes))


def test_an_embedding_of_another_size_is_refused(digits: Config) -> None:
    embedding = of_kind(digits, "portrait-embedding")
    fit(embedding)
    config = of_kind(digits, "portrait-pixelcnn", **GATED, embedding_run=run_url_of(embedding))
    with pytest.raises(UserError, match="make them the same"):
        fit(config)


@pytest.mark.parametrize("turned_images", [0.0, 0.5])
def test_one_model_serves_with_and_without_labels(turned_images: float, digits: Config) -> None:
    config = of_kind(digits, "gated-pixelcnn", **GATED, condition_dropout=0.3, turned_images=turned_images)
    fit(config)
    _, given = drawn_from(config)
    _, without = drawn_from(config, conditional=False)
    assert "labels" in given
    assert "labels" not in without
    tree = config.model_dump()
    tree["model"]["condition_dropout"] = 0.0
    tree["evaluate"]["conditional"] = False
    with pytest.raises(UserError, match=r"evaluate\.conditional is false, but the model was never trained without"):
        Config.model_validate(tree)


def test_binary_images_report_nats_an_image(tmp_path: Path, digits: Config) -> None:
    tree = of_kind(digits, "diagonal-bilstm").model_dump()
    tree["data"] |= {"levels": 2, "url": str(tmp_path / "binary")}
    config = Config.model_validate(tree)
    prepare(config)
    metrics = fit(config)
    assert load_manifest(config, "val").version == "digits-8-none-2levels"
    assert 0.0 < metrics["val/nats"] < 64 * 0.6932 * 1.05
    assert set(np.unique(drawn_from(config)[1]["images"])) <= {0, 1}


def is_small_density_model(config: Config) -> bool:
    model = config.empty_model()
    return config.data.image_size <= 32 and model.measure == "nats" and model.flops(8, 8) < 5e8


@pytest.mark.parametrize("preset", [name for name in PRESETS if is_small_density_model(PRESETS[name].config)])
def test_untrained_small_models_are_near_the_uniform_density(preset: str) -> None:
    config = PRESETS[preset].config
    torch.manual_seed(0)
    model = config.build_model()
    size = config.data.image_size
    images = torch.randint(0, config.data.levels, (2, config.data.channels, size, size)).to(torch.uint8)
    labels = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        outputs = model(images, labels) if model.reads_labels else model(images)
        nats = model.losses(outputs, images, labels).mean().item() / config.dims
    far = 0.03 if getattr(config.model, "logit_scale", 1.0) == 1.0 else 0.05
    assert nats == pytest.approx(np.log(config.data.levels), rel=far)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("kind", [*KINDS, "gated-pixelcnn"])
def test_every_kind_trains_compiled_in_bfloat16_as_on_gpus(kind: str, tmp_path: Path, prepared_digits: Path) -> None:
    torch._dynamo.reset()
    config = tiny_config(tmp_path, data={"url": str(prepared_digits)})
    changes: dict[str, Any] = (
        GATED | {"condition_dropout": 0.3, "turned_images": 0.5} if kind == "gated-pixelcnn" else {}
    )
    config = of_kind(config, kind, **changes)
    training = {"steps": 2, "noisy_images": 0.1 if config.empty_model().measure == "nats" else 0.0}
    config = changed(config, train=training, run={"compile": "on", "precision": "bfloat16", "log_interval": 1})
    assert fit(config)["step"] == 2
