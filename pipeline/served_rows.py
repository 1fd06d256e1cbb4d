"""The columns of a request to the served model as tensors, or why they can't be taken."""

import base64
import io
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from torch import Tensor

from models.autoregressive import AutoregressiveModel
from pipeline.config import Config
from pipeline.grid import stretched
from pipeline.sources.pixels import UNDECODABLE


def refuse(message: str) -> NoReturn:
    """Raise what MLflow's server answers with status 400 and the message."""
    raise MlflowException.invalid_parameter_value(message)


class Rows:
    """The columns of a request as tensors, each checked against what the model takes."""

    def __init__(self, frame: pd.DataFrame, config: Config, model: AutoregressiveModel) -> None:
        self._frame, self._config, self._model = frame, config, model

    def __len__(self) -> int:
        return len(self._frame)

    def has(self, column: str) -> bool:
        """Whether the request has the column."""
        return column in self._frame.columns

    def labels(self) -> Tensor:
        """The classes."""
        classes = self._model.num_classes
        if not classes:
            refuse("column label: the model reads no labels; leave it out")
        for row, label in enumerate(self._frame["label"]):
            if not 0 <= label < classes:
                refuse(f"column label, row {row}: {label} is no class; send 0 to {classes - 1}")
        return torch.tensor([int(label) for label in self._frame["label"]])

    def vectors(self) -> Tensor:
        """The vectors h, float32 [n, d]."""
        size = self._model.body.condition_size
        if not size:
            refuse("column vector: the model is conditioned on nothing; leave it out")
        vectors = []
        for row, value in enumerate(self._frame["vector"]):
            vector = _as_array(value, np.float32)
            if vector is None or vector.shape != (size,) or not np.isfinite(vector).all():
                got = "no vector" if vector is None else f"{vector.tolist()}"
                refuse(f"column vector, row {row}: got {got}; send {size} finite numbers")
            vectors.append(vector)
        return torch.from_numpy(np.stack(vectors))

    def images(self) -> Tensor | None:
        """The images of the column `png` or `array` in levels, uint8 [n c h w]; None where there is neither."""
        if self.has("png") and self.has("array"):
            refuse("columns png and array: both hold the images; leave one out")
        readers = {"png": self._of_png, "array": self._of_array}
        for column, reader in readers.items():
            if self.has(column):
                read = [reader(value, f"column {column}, row {row}") for row, value in enumerate(self._frame[column])]
                return torch.from_numpy(np.stack(read))
        return None

    def keep_rows(self, has_images: bool, needed: bool) -> Tensor | None:
        """How many upper rows of each image are given; None where nothing is completed."""
        if not self.has("keep_rows"):
            if has_images and needed:
                refuse("column keep_rows is missing: send how many upper rows of each image are given")
            return None
        if not has_images:
            refuse("column keep_rows: there are no images to keep rows of; send them as png or array")
        size = self._config.data.image_size
        for row, kept in enumerate(self._frame["keep_rows"]):
            if not 0 <= kept < size:
                refuse(f"column keep_rows, row {row}: {kept} leaves nothing to draw; send 0 to {size - 1}")
        return torch.tensor([int(kept) for kept in self._frame["keep_rows"]])

    def seeds(self, first: int) -> list[int]:
        """The seed of each row: its own, or `first` and those after it."""
        if self.has("seed"):
            return [int(seed) for seed in self._frame["seed"]]
        return [first + row for row in range(len(self))]

    def _of_png(self, value: Any, place: str) -> np.ndarray:
        """Levels of a base64 PNG, whose pixels must be levels stretched to 0..255 as those that are answered."""
        data = self._config.data
        wanted = f"{data.image_size} x {data.image_size} pixels, mode {'L' if data.channels == 1 else 'RGB'}"
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(value, validate=True)), formats=["PNG"])
            got = f"{picture.width} x {picture.height} pixels, mode {picture.mode}"
            if got != wanted:
                refuse(f"{place}: got {got}; send a base64 PNG of {wanted}")
            pixels = np.asarray(picture)
        except (*UNDECODABLE, TypeError):
            refuse(f"{place}: {str(value)[:40]!r} can't be read as a base64 PNG; send one of {wanted}")
        pixels = pixels.reshape(data.image_size, data.image_size, data.channels).transpose(2, 0, 1)
        level_of = np.full(256, -1)
        level_of[stretched(np.arange(data.levels), data.levels)] = np.arange(data.levels)
        levels = level_of[pixels]
        if (levels < 0).any():
            value = int(pixels[levels < 0][0])
            refuse(
                f"{place}: the value {value} is none of the {data.levels} levels stretched to 0..255; "
                "stretch and round them, or send the levels themselves as array"
            )
        return levels.astype(np.uint8)

    def _of_array(self, value: Any, place: str) -> np.ndarray:
        data = self._config.data
        shape, levels = (data.channels, data.image_size, data.image_size), _as_array(value, np.int64)
        if levels is None or levels.shape != shape:
            got = "no array" if levels is None else f"the shape {list(levels.shape)}"
            refuse(f"{place}: got {got}; send levels [channels, height, width] of the shape {list(shape)}")
        wrong = levels[(levels < 0) | (levels >= data.levels)]
        if len(wrong):
            refuse(f"{place}: {wrong[0]} is no level; send 0 to {data.levels - 1}")
        return levels.astype(np.uint8)


def _as_array(value: Any, dtype: type) -> np.ndarray | None:
    """The nested list as an array; None where it is none."""
    try:
        return np.array(value.tolist() if isinstance(value, np.ndarray) else value, dtype=dtype)
    except (ValueError, TypeError):
        return None
