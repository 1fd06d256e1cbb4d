"""The pyfunc that MLflow loads and serves: it draws images, or scores them. It travels with the weights.

A row of the request is an image: drawn by `task` "sample" from what its columns give (a label, a vector, the upper rows
of an image), or scored by `task` "score". Every row has a seed, from which it is drawn as `jobs.sample` would.
"""

import base64
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from safetensors.torch import load_file
from torch import Tensor

from models.autoencoder import PixelCNNAutoEncoder
from models.autoregressive import AutoregressiveModel, Condition
from models.likelihood import bits_per_dim, sum_by_image
from models.sampling import Known, draw
from pipeline.config import Config
from pipeline.grid import image_png
from pipeline.precision import autocast, on_device
from pipeline.served_rows import Rows, refuse

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "weights.safetensors"
DEFAULTS: dict[str, Any] = {"task": "sample", "seed": 0, "temperature": 1.0, "format": "png"}
CHOICES = {"task": ("sample", "score"), "format": ("png", "array")}
PARAM_TYPES = {"seed": DataType.long, "temperature": DataType.double}
LEVELS = Array(Array(Array(DataType.long)))
COLUMNS = {
    "label": DataType.long,
    "vector": Array(DataType.double),
    "png": DataType.string,
    "array": LEVELS,
    "keep_rows": DataType.long,
    "seed": DataType.long,
}


def signature() -> ModelSignature:
    """What a request may hold, whatever the model's kind, and what is answered; every column is optional."""
    answered = {
        "png": DataType.string,
        "array": LEVELS,
        "seed": DataType.long,
        "nats": DataType.double,
        "bits_per_dim": DataType.double,
    }
    return ModelSignature(
        inputs=Schema([ColSpec(type_, name, required=False) for name, type_ in COLUMNS.items()]),
        outputs=Schema(
            [ColSpec(type_, name, required=name not in ("png", "array", "seed")) for name, type_ in answered.items()]
        ),
        params=ParamSchema(
            [ParamSpec(name, PARAM_TYPES.get(name, DataType.string), value) for name, value in DEFAULTS.items()]
        ),
    )


def _load_pyfunc(folder: str) -> "ServedModel":
    """MLflow's entry: the model of a folder that holds its configuration and weights."""
    return ServedModel(Path(folder))


class ServedModel:
    """A density model with trained weights, on the GPU if there is one."""

    def __init__(self, folder: Path) -> None:
        self._config = Config.model_validate_json((folder / CONFIG_NAME).read_text())
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self._config.build_model()
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
        model = on_device(model.eval(), self._device)
        self._encode: Callable[[Tensor], Tensor] | None = None
        if isinstance(model, PixelCNNAutoEncoder):
            self._encode, model = model.encode, model.decoder
        assert isinstance(model, AutoregressiveModel)
        self._model = model
        # MLflow's server predicts in threads, and a CUDA graph is captured with no other work beside it.
        self._one_at_a_time = threading.Lock()

    @torch.no_grad()
    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each row: `png` or `array`, `seed`, `nats` and `bits_per_dim` of drawn images, or the last two.

        Nats count the drawn sub-pixels alone, at temperature 1; bits/dim are by as many.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE; it names the column or param, the row, the value and the remedy.
        """
        asked = DEFAULTS | (params or {})
        for name, choices in CHOICES.items():
            if asked[name] not in choices:
                refuse(f"param {name}: {asked[name]!r} is none of {', '.join(choices)}; send one of them")
        if not len(model_input) or not len(model_input.columns):
            refuse(f'no row with one of the columns {", ".join(COLUMNS)}: send a row an image, {{"seed": 0}} at least')
        if not asked["temperature"] > 0.0:
            refuse(f"param temperature: {asked['temperature']} is not above 0; send 1 to draw from the model itself")
        rows = Rows(model_input, self._config, self._model)
        images = rows.images()
        with self._one_at_a_time:
            condition = self._condition(rows, images, asked["task"])
            if asked["task"] == "score":
                return self._score(rows, images, condition)
            return self._sample(rows, images, condition, asked)

    def _condition(self, rows: Rows, images: Tensor | None, task: str) -> Condition | None:
        """What the images are given, from the labels, the vectors or the images' own encoder; None for nothing."""
        if rows.has("label") and rows.has("vector"):
            refuse("columns label and vector: a model is conditioned on one of them; leave the other out")
        if rows.has("label"):
            return rows.labels().to(self._device)
        if rows.has("vector"):
            return rows.vectors().to(self._device)
        body = self._model.body
        if self._encode:
            if images is None or (task == "sample" and rows.has("keep_rows")):
                refuse(f"column vector is missing: send {body.condition_size} numbers a row, or whole images instead")
            with autocast(self._config, self._device) if task == "score" else contextlib.nullcontext():
                return torch.cat([self._encode(self._moved(images[batch])) for batch in self._batches(rows, task)])
        if body.condition_size and not body.condition_dropout:
            refuse(
                f"column label is missing: the model was never trained without; send 0 to {self._model.num_classes - 1}"
            )
        return None

    def _sample(
        self, rows: Rows, images: Tensor | None, condition: Condition | None, asked: dict[str, Any]
    ) -> pd.DataFrame:
        keep = rows.keep_rows(images is not None, needed=self._encode is None)
        seeds, size, levels = rows.seeds(asked["seed"]), self._config.data.image_size, self._config.data.levels
        known, png = None, asked["format"] == "png"
        if keep is not None:
            assert images is not None
            mask = (torch.arange(size) < keep[:, None])[:, :, None].expand(-1, -1, size)
            known = Known(images.to(self._device), mask.to(self._device))
        answers: list[dict[str, Any]] = []
        for batch in self._batches(rows, "sample"):
            with autocast(self._config, self._device):
                drawn = draw(
                    self._model,
                    height=size,
                    width=size,
                    seeds=seeds[batch],
                    condition=None if condition is None else condition[batch],
                    temperature=asked["temperature"],
                    known=None if known is None else Known(known.images[batch], known.mask[batch]),
                )
            for image, nats in zip(drawn.images.cpu().numpy(), drawn.nats.tolist(), strict=True):
                row = len(answers)
                drawn_rows = size if keep is None else size - int(keep[row])
                shown = base64.b64encode(image_png(image, levels)).decode() if png else image.tolist()
                answer = {asked["format"]: shown, "seed": seeds[row]}
                answers.append(answer | _likelihood(nats, self._config.dims // size * drawn_rows))
        return pd.DataFrame(answers)

    def _score(self, rows: Rows, images: Tensor | None, condition: Condition | None) -> pd.DataFrame:
        if images is None:
            refuse("columns png and array are missing: send the images to score in one of them")
        if rows.has("keep_rows"):
            refuse("column keep_rows: scores are of whole images; leave it out")
        nats: list[float] = []
        for batch in self._batches(rows, "score"):
            pixels = self._moved(images[batch])
            with autocast(self._config, self._device):
                logits = self._model(pixels, None if condition is None else condition[batch])
            nats += sum_by_image(self._model.nats(logits, pixels)).tolist()
        return pd.DataFrame([_likelihood(one, self._config.dims) for one in nats])

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self._device, memory_format=torch.channels_last)

    def _batches(self, rows: Rows, task: str) -> list[slice]:
        """The rows in the batches of `jobs.sample` or `jobs.evaluate`, as sums of another size may round otherwise."""
        size = self._config.sample.batch_size if task == "sample" else self._config.evaluate.batch_size
        return [slice(start, start + size) for start in range(0, len(rows), size)]


def _likelihood(nats: float, dims: int) -> dict[str, float]:
    return {"nats": nats, "bits_per_dim": bits_per_dim(nats, 1, dims)}
