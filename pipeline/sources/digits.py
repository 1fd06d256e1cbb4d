"""scikit-learn's digits: real handwritten images that come with the package."""

import functools

import numpy as np

from pipeline.config import Data
from pipeline.sources.pixels import from_array
from pipeline.sources.source import Source, SourceImage, hold_out


def open_digits(data: Data) -> Source:
    """The test set of UCI's Optical Recognition of Handwritten Digits as scikit-learn ships it: levels 0 to 16."""
    from sklearn.datasets import load_digits  # only `prepare digits` needs scikit-learn's second of import

    digits = load_digits()
    arrays = digits.images.astype(np.uint8)[..., None]
    images = [
        SourceImage(f"digit{index:04d}", int(label), functools.partial(from_array, array, data))
        for index, (array, label) in enumerate(zip(arrays, digits.target, strict=True))
    ]
    return Source(tuple(str(name) for name in digits.target_names), hold_out(data, images), levels=17)
