"""The model of one row, whatever its body."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from models.autoregressive import AutoregressiveModel
from models.gated_pixelcnn import GatedPixelCNN
from models.incremental.gated import GatedRow
from models.incremental.pixel_rnn import PixelRNNRow
from models.incremental.pixelcnn import PixelCNNRow
from models.incremental.strips import Operation, Strip
from models.pixel_rnn import PixelRNN
from models.pixelcnn import PixelCNN


@runtime_checkable
class BodyRow(Protocol):
    """A body on the row being drawn: `image` holds its scaled sub-pixels so far, `features` what the head reads."""

    image: Strip
    features: Strip

    def begin(self, y: int) -> None:
        """Go to row y = 0, 1, ...; `image` holds the one above whole."""

    def operations(self, x: int, group: int) -> list[Operation]:
        """What gives the features of a sub-pixel once all before it are in `image`; the same for every row."""


def row_of(
    model: AutoregressiveModel, vectors: Float[Tensor, "b d"] | None, height: int, like: Float[Tensor, "b c w"]
) -> BodyRow:
    """The model's body on rows of `like`'s width, dtype and device.

    Raises:
        TypeError: the body has no incremental form.
    """
    body = model.body
    if isinstance(body, GatedPixelCNN):
        return GatedRow(body, vectors, height, like)
    if isinstance(body, PixelCNN):
        return PixelCNNRow(body, like)
    if isinstance(body, PixelRNN):
        return PixelRNNRow(body, like)
    raise TypeError(f"{type(body).__name__} has no incremental form in models.incremental")
