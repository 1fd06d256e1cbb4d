"""The picture of where in an image the nats lie."""

import numpy as np
from jaxtyping import Float64

from pipeline.plot import figure_png


def position_png(bits: Float64[np.ndarray, "h w"], title: str) -> bytes:
    """A PNG of the bits/dim of each position, with its scale beside it."""
    from matplotlib.figure import Figure  # every job would take its half a second of import

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(bits, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="bits/dim")
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    return figure_png(figure)
