"""What the pyfunc draws is what `jobs.sample` draws, what it scores is what `jobs.evaluate` measures."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import save_file

from models.trainable import TrainableModel
from pipeline.config import Config
from pipeline.drawing import draw_and_write
from pipeline.evaluate import evaluate
from pipeline.manifest import load_manifest
from pipeline.precision import on_device
from pipeline.served_model import CONFIG_NAME, WEIGHTS_NAME, ServedModel
from pipeline.stream import evaluation_batches
from tests.conftest import LocalWorker, tiny_config
from tests.pipeline.test_drawing import asking
from tests.pipeline.test_model_kinds import GATED, of_kind
from tests.pipeline.test_train import changed


def served_and_trained(config: Config, folder: Path) -> tuple[ServedModel, TrainableModel]:
    """The served model of random weights, and the model as the jobs would have it."""
    torch.manual_seed(0)
    model = config.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(config.model_dump_json())
    return ServedModel(folder), on_device(model.eval(), torch.device("cpu"))


def drawn(config: Config, model: TrainableModel, folder: Path) -> dict[str, np.ndarray]:
    draw_and_write(config, model, load_manifest(config, "val"), LocalWorker(""), str(folder), "w")
    with np.load(folder / "samples.npz") as arrays:
        return dict(arrays)


def validation_images(config: Config) -> tuple[np.ndarray, np.ndarray]:
    batches = list(evaluation_batches(config, load_manifest(config, "val"), 50, rank=0, world_size=1))
    images, labels = (np.concatenate([getattr(one, name).numpy() for one in batches]) for name in ("images", "labels"))
    return images, labels


def asked(model: ServedModel, params: dict[str, Any] | None = None, **columns: Any) -> pd.DataFrame:
    lists = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    return model.predict(pd.DataFrame(lists), params)


def as_png(image: np.ndarray, levels: int) -> str:
    buffer = io.BytesIO()
    pixels = np.round(image * (255.0 / (levels - 1))).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def claiming(side: int) -> str:
    """A PNG of no pixels whose header names a size that Pillow takes for an attack."""
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return base64.b64encode(content).decode()


def from_png(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture(params=["float32", "bfloat16"])
def digits(digits: Config, request: pytest.FixtureRequest) -> Config:
    """The tiny configuration as it runs on CPUs, and as it runs on GPUs."""
    return changed(digits, run={"precision": request.param})


@pytest.fixture
def labelled(digits: Config) -> Config:
    return of_kind(digits, "gated-pixelcnn", **GATED)


def test_labels_give_the_images_of_jobs_sample(labelled: Config, tmp_path: Path) -> None:
    config = asking(labelled, count=7, batch_size=4, seed=30, temperature=0.9)
    served, model = served_and_trained(config, tmp_path / "model")
    expected = drawn(config, model, tmp_path / "drawn")
    params = {"seed": 30, "temperature": 0.9, "format": "array"}
    answer = asked(served, params, label=expected["labels"])
    np.testing.assert_array_equal(np.array(answer["array"].tolist()), expected["images"])
    np.testing.assert_array_equal(answer["nats"], expected["nats"])
    np.testing.assert_allclose(answer["bits_per_dim"], expected["nats"] / (64 * np.log(2)), rtol=1e-12)
    pictures = asked(served, {"temperature": 0.9}, label=expected["labels"], seed=list(range(30, 37)))
    assert pictures["seed"].tolist() == list(range(30, 37))
    for text, image in zip(pictures["png"], expected["images"], strict=True):
        np.testing.assert_array_equal(from_png(text), np.round(image[0] * (255 / 16)))


def test_known_rows_are_completed_as_by_jobs_sample(labelled: Config, tmp_path: Path) -> None:
    config = asking(labelled, count=4, keep_rows=5)
    served, model = served_and_trained(config, tmp_path / "model")
    expected = drawn(config, model, tmp_path / "drawn")
    originals, labels = (expected[name].repeat(2, axis=0) for name in ("originals", "labels"))
    columns = {"label": labels, "array": originals, "keep_rows": [5] * 4}
    answer = asked(served, {"format": "array"}, **columns)
    np.testing.assert_array_equal(np.array(answer["array"].tolist()), expected["images"])
    np.testing.assert_array_equal(answer["nats"], expected["nats"])
    np.testing.assert_allclose(answer["bits_per_dim"], answer["nats"] / (3 * 8 * np.log(2)), rtol=1e-12)
    columns["png"] = [as_png(image, 17) for image in columns.pop("array")]
    pd.testing.assert_frame_equal(asked(served, {"format": "array"}, **columns), answer)


@pytest.mark.parametrize("kind", ["gated-pixelcnn", "row-lstm", "pixelcnn-autoencoder"])
def test_scores_are_those_of_jobs_evaluate(kind: str, digits: Config, tmp_path: Path) -> None:
    config = of_kind(digits, kind, **(GATED if kind == "gated-pixelcnn" else {}))
    served, model = served_and_trained(config, tmp_path / "model")
    measured = evaluate(config, load_manifest(config, "val"), model, LocalWorker(""), config.evaluate.batch_size)
    images, labels = validation_images(config)
    given = {"label": labels} if kind == "gated-pixelcnn" else {}
    answer = asked(served, {"task": "score"}, array=images, **given)
    assert list(answer.columns) == ["nats", "bits_per_dim"]
    assert len(answer) == measured.images
    assert answer["nats"].sum() == pytest.approx(measured.total, rel=1e-12)
    assert answer["bits_per_dim"].mean() == pytest.approx(measured.metrics("val")["val/bits_per_dim"], rel=1e-12)
    pictures = asked(served, {"task": "score"}, png=[as_png(image, 17) for image in images], **given)
    pd.testing.assert_frame_equal(pictures, answer)


def test_a_decoder_draws_from_vectors_and_from_whole_images(digits: Config, tmp_path: Path) -> None:
    config = asking(of_kind(digits, "pixelcnn-autoencoder"), count=4)
    served, model = served_and_trained(config, tmp_path / "model")
    expected = drawn(config, model, tmp_path / "drawn")
    answer = asked(served, {"format": "array"}, array=expected["originals"].repeat(2, axis=0))
    np.testing.assert_array_equal(np.array(answer["array"].tolist()), expected["images"])
    vectors = np.array([[0.0, 1.0, 2.0], [0.5, 0.0, -1.0]])
    np.save(tmp_path / "h.npy", vectors)
    expected = drawn(asking(config, vectors=str(tmp_path / "h.npy")), model, tmp_path / "from_vectors")
    answer = asked(served, {"format": "array"}, vector=vectors.repeat(2, axis=0))
    np.testing.assert_array_equal(np.array(answer["array"].tolist()), expected["images"])
    with pytest.raises(MlflowException, match="column vector is missing: send 3 numbers a row, or whole images"):
        asked(served, array=expected["images"][:1], keep_rows=[3])


def test_a_model_without_condition_draws_from_seeds_alone(digits: Config, tmp_path: Path) -> None:
    config = asking(of_kind(digits, "pixelcnn"), count=3)
    served, model = served_and_trained(config, tmp_path / "model")
    expected = drawn(config, model, tmp_path / "drawn")
    answer = asked(served, {"format": "array"}, seed=[0, 1, 2])
    np.testing.assert_array_equal(np.array(answer["array"].tolist()), expected["images"])
    for column, value in (("label", 1), ("vector", [1.0])):
        with pytest.raises(MlflowException, match=f"column {column}: the model .*; leave it out"):
            asked(served, **{column: [value]})


def test_colour_images_of_256_levels_come_back_as_they_went(digits: Config, tmp_path: Path) -> None:
    config = of_kind(digits, "pixelcnn", num_layers=1, num_filters=6, head_filters=6)
    config = Config.model_validate(
        config.model_dump() | {"data": config.data.model_dump() | {"channels": 3, "levels": 256}}
    )
    served, _ = served_and_trained(config, tmp_path / "model")
    answer = asked(served, seed=[4])
    arrays = asked(served, {"format": "array"}, seed=[4])
    np.testing.assert_array_equal(from_png(answer["png"][0]).transpose(2, 0, 1), np.array(arrays["array"][0]))
    one, other = (
        asked(served, {"task": "score"}, **{key: [frame[key][0]]})
        for key, frame in (("png", answer), ("array", arrays))
    )
    pd.testing.assert_frame_equal(one, other)
    assert one["nats"][0] == pytest.approx(answer["nats"][0], rel=1e-5)


GREY = [[[0] * 8] * 8]
COMPLETED = {"label": 1, "keep_rows": 1}
GOOD = COMPLETED | {"array": GREY, "png": as_png(np.zeros((1, 8, 8)), 17), "seed": 0, "vector": [0.0] * 10}


@pytest.fixture(scope="module")
def labels_only(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("served")
    return served_and_trained(of_kind(tiny_config(folder), "gated-pixelcnn", **GATED), folder / "model")[0]


@pytest.mark.parametrize(
    ("columns", "params", "told"),
    [
        ({"label": 10}, {}, "column label, row 1: 10 is no class; send 0 to 9"),
        ({"seed": 0}, {}, "column label is missing: the model was never trained without; send 0 to 9"),
        ({"label": 1, "vector": [1.0]}, {}, "columns label and vector: a model is conditioned on one of them"),
        ({"vector": [1.0, 2.0]}, {}, r"column vector, row 1: got \[1.0, 2.0\]; send 10 finite numbers"),
        (COMPLETED | {"array": [[[1, 2]]]}, {}, r"column array, row 1: got the shape \[1, 1, 2\]; send .* \[1, 8, 8\]"),
        (COMPLETED | {"array": [[[1], [1, 2]]]}, {}, "column array, row 1: got no array"),
        (COMPLETED | {"array": [[[17] * 8] * 8]}, {}, "column array, row 1: 17 is no level; send 0 to 16"),
        (COMPLETED | {"array": GREY, "png": ""}, {}, "columns png and array: both hold the images"),
        ({"label": 1, "array": GREY}, {}, "column keep_rows is missing: send how many upper rows"),
        ({"label": 1, "array": GREY, "keep_rows": 8}, {}, "row 1: 8 leaves nothing to draw; send 0 to 7"),
        ({"label": 1, "keep_rows": 2}, {}, "column keep_rows: there are no images to keep rows of"),
        (COMPLETED | {"png": "no PNG"}, {}, "column png, row 1: 'no PNG' can't be read as a base64 PNG"),
        (COMPLETED | {"png": claiming(60_000)}, {}, r"column png, row 1: 'iVBOR.* can't be read as a base64 PNG"),
        (COMPLETED | {"png": as_png(np.zeros((3, 8, 8)), 17)}, {}, "got 8 x 8 pixels, mode RGB; send .*, mode L"),
        (COMPLETED | {"png": as_png(np.zeros((1, 4, 8)), 17)}, {}, "got 8 x 4 pixels, mode L; send .* 8 x 8"),
        (COMPLETED | {"png": as_png(np.ones((1, 8, 8)), 256)}, {}, "the value 1 is none of the 17 levels"),
        ({"label": 1}, {"task": "score"}, "columns png and array are missing: send the images to score"),
        (COMPLETED | {"array": GREY}, {"task": "score"}, "column keep_rows: scores are of whole images"),
        ({"label": 1}, {"task": "dream"}, "param task: 'dream' is none of sample, score"),
        ({"label": 1}, {"format": "gif"}, "param format: 'gif' is none of png, array"),
        ({"label": 1}, {"temperature": 0.0}, "param temperature: 0.0 is not above 0"),
        ({}, {}, "no row with one of the columns label, vector, png, array, keep_rows, seed"),
    ],
)
def test_bad_requests_name_what_is_wrong_and_the_remedy(
    columns: dict[str, Any], params: dict[str, Any], told: str, labels_only: ServedModel
) -> None:
    rows = pd.DataFrame([{name: GOOD[name] for name in columns}, columns])
    with pytest.raises(MlflowException, match=told) as refused:
        labels_only.predict(rows, params)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
