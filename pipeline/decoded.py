"""Images of a split as arrays: decoded once and kept, where the whole split fits into memory, or anew each epoch."""

import itertools
import math

import numpy as np
from jaxtyping import UInt8

from pipeline.manifest import Manifest
from pipeline.shards import Record, decode_png


def are_kept(manifest: Manifest, gigabytes: float) -> bool:
    """Whether the images of a split take at most so many 1e9 bytes, decoded."""
    return manifest.num_images * math.prod(manifest.shape) <= gigabytes * 1e9


class DecodedImages:
    """A split's images, of which each is decoded when it is first asked for; used by one thread.

    Decoding holds Python's lock, for which the thread that gives a GPU its work has to wait: of 64 images of 32x32x3
    4 to 5 ms, where a step of `cifar10` takes 26 on an H200 (benchmarks/stream.md).
    """

    def __init__(self, manifest: Manifest, gigabytes: float) -> None:
        """Nothing is decoded yet, and no memory is touched.

        Args:
            manifest: the split's.
            gigabytes: most that its images may take in memory, in 1e9 bytes; of a larger split none are kept.
        """
        self._shape, counts = manifest.shape, [shard.records for shard in manifest.shards]
        self._starts = list(itertools.accumulate(counts, initial=0))
        kept = manifest.num_images if are_kept(manifest, gigabytes) else 0
        self._images, self._is_there = np.empty((kept, *self._shape), np.uint8), np.zeros(kept, np.bool_)

    def image(self, shard: int, number: int, record: Record) -> UInt8[np.ndarray, "c h w"]:
        """The image of a shard's record, the number of which in the shard is given; to be read, not written to.

        Raises:
            UserError: the record's bytes are no image, or one of another shape.
        """
        if not len(self._images):
            return decode_png(record, self._shape)
        index = self._starts[shard] + number
        if not self._is_there[index]:
            self._images[index] = decode_png(record, self._shape)
            self._is_there[index] = True
        return self._images[index]
