"""Shards to batches: an order that is a pure function of (seed, manifest, configuration), read ahead of the step."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from pipeline.config import Config
from pipeline.decoded import DecodedImages
from pipeline.errors import UserError
from pipeline.manifest import Manifest, Shard, split_url
from pipeline.shard_cache import ShardCache
from pipeline.shards import Record, decode_png, fetch

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Batch:
    """This rank's images of a global batch, their labels, and the record keys they come from."""

    images: UInt8[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]
    keys: list[str]
    part_sizes: list[int]
    """Images of each part of the global batch that this rank has, in order; see own_parts."""


@dataclass(frozen=True)
class Place:
    """Where a record lies: the shard's index in the manifest and the record's in the shard."""

    shard: int
    record: int


class Own(NamedTuple):
    """A record that is this rank's, where it lies, and whether it is mirrored."""

    place: Place
    record: Record
    flipped: bool


def own_parts(config: Config, rank: int, world_size: int) -> dict[int, range]:
    """This rank's parts of a global batch: their numbers and their places in it.

    A batch is cut into cluster.num_workers parts that differ by one image at most, whatever the number of workers that
    are there. A rank has one or more neighbouring parts and computes each by itself, so it needs no more memory when
    others are missing, and a part's images, shapes and random numbers don't depend on who has it.
    """
    size, parts = config.train.batch_size, max(config.cluster.num_workers, world_size)
    own = range(rank * parts // world_size, (rank + 1) * parts // world_size)
    return {part: range(part * size // parts, (part + 1) * size // parts) for part in own}


def shard_cache(config: Config) -> ShardCache | None:
    """The cache of this host's workers, if data.cache_folder names one."""
    if not config.data.cache_folder:
        return None
    return ShardCache(config.data.cache_folder, config.data.cache_gigabytes * 1e9)


def epoch_groups(manifest: Manifest, seed: int, epoch: int, shuffle_shards: int) -> list[list[int]]:
    """The epoch's shards in random order, cut into groups whose records are mixed."""
    order = np.random.default_rng([seed, epoch, 0]).permutation(len(manifest.shards)).tolist()
    return [order[start : start + shuffle_shards] for start in range(0, len(order), shuffle_shards)]


def group_places(manifest: Manifest, group: list[int], seed: int, epoch: int) -> list[Place]:
    """Every record of a group of shards, in random order."""
    places = [Place(shard, record) for shard in group for record in range(manifest.shards[shard].records)]
    order = np.random.default_rng([seed, epoch, 1, group[0]]).permutation(len(places))
    return [places[index] for index in order]


def group_flips(manifest: Manifest, group: list[int], seed: int, epoch: int) -> list[bool]:
    """Which places of a group, in their order, are mirrored left to right: each with probability one half."""
    count = sum(manifest.shards[shard].records for shard in group)
    flips: list[bool] = (np.random.default_rng([seed, epoch, 2, group[0]]).random(count) < 0.5).tolist()
    return flips


class TrainingStream:
    """This rank's share of every global batch from `images_seen` on, without end.

    The global sequence of images doesn't depend on rank, world_size or where it is resumed: epochs follow each other,
    each image once an epoch, and a global batch may reach over the end of one. Each rank takes its own_parts of each
    global batch. Each rank fetches every shard and decodes its own records only; two groups of data.shuffle_shards
    shards are in memory: the one in use and the next, which is read meanwhile. Of a split that fits into
    data.decoded_gigabytes each image is decoded once. With data.on_bad_shard skip, what a rank can't read is missing
    from its batches, which may then be empty, and counted in `records_skipped`; every place keeps its batch and rank.
    With train.horizontal_flips each place mirrors the image that it holds, or doesn't.
    """

    def __init__(self, config: Config, manifest: Manifest, *, rank: int, world_size: int, images_seen: int) -> None:
        self.config, self.manifest, self.rank, self.world_size = config, manifest, rank, world_size
        self.images_seen, self._parts = images_seen, list(own_parts(config, rank, world_size).values())
        self.seconds_waited = 0.0
        self.records_skipped = 0
        self._decoded = DecodedImages(manifest, config.data.decoded_gigabytes)
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(config.data.prefetch_batches)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="training-stream", daemon=True)
        self._thread.start()

    def __enter__(self) -> "TrainingStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, and the time it was waited for in `seconds_waited`.

        Raises:
            UserError: a shard is missing or not what the manifest says, and data.on_bad_shard is fail.
        """
        started = time.perf_counter()
        batch = self._ready.get()
        self.seconds_waited += time.perf_counter() - started
        if isinstance(batch, BaseException):
            raise batch
        self.images_seen += self.config.train.batch_size
        return batch

    def _read_ahead(self) -> None:
        try:
            for batch in self._batches():
                while not self._stopped.is_set():
                    try:
                        self._ready.put(batch, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._ready.put(error)

    def _batches(self) -> Iterator[Batch]:
        """Own records, gathered into batches: position i of the sequence is this rank's if its part of the batch is."""
        size, ends = self.config.train.batch_size, [part.stop for part in self._parts]
        records: list[list[Own]] = [[]]
        for position, own in self._own_records():
            if own:
                records[-1].append(own)
            if position % size + 1 == ends[-1]:
                yield self._stacked(records)
                records = [[]]
            elif position % size + 1 in ends:
                records.append([])

    def _stacked(self, records: list[list[Own]]) -> Batch:
        parts = [self._sound(part) for part in records]
        sound = [pair for part in parts for pair in part]
        self.records_skipped += sum(map(len, self._parts)) - len(sound)
        empty = np.empty((0, *self.manifest.shape), np.uint8)
        return Batch(
            torch.from_numpy(np.stack([image for image, _ in sound]) if sound else empty),
            torch.tensor([record.label for _, record in sound], dtype=torch.int64),
            [record.key for _, record in sound],
            [len(part) for part in parts],
        )

    def _sound(self, records: list[Own]) -> list[tuple[Any, Record]]:
        sound = []
        for own in records:
            image = self._unless_bad(self._decoded.image, own.place.shard, own.place.record, own.record)
            if image is not None:
                sound.append((image[:, :, ::-1] if own.flipped else image, own.record))
        return sound

    def _unless_bad(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT | None:
        """What the function gives; None, told in a line, if it can't and data.on_bad_shard is skip."""
        try:
            return function(*arguments)
        except UserError as error:
            if self.config.data.on_bad_shard == "fail":
                raise
            print(f"rank {self.rank} skips: {error}", flush=True)
            return None

    def _own_records(self) -> Iterator[tuple[int, Own | None]]:
        """Positions of the sequence that are this rank's, and what is there if it can be read."""
        size, own = self.config.train.batch_size, range(self._parts[0].start, self._parts[-1].stop)
        seed, position = self.config.train.seed, self.images_seen
        wanted, in_use = itertools.tee(self._groups_from(position))
        shards = ([self.manifest.shards[index] for index in group] for _, _, group in wanted)
        for (epoch, start, group), reads in zip(in_use, read_ahead(self.config, self.manifest, shards), strict=True):
            records = {shard: self._unless_bad(read.result) for shard, read in zip(group, reads, strict=True)}
            places = group_places(self.manifest, group, seed, epoch)
            flips = group_flips(self.manifest, group, seed, epoch)
            for place, flip in zip(places[position - start :], flips[position - start :], strict=True):
                if position % size in own:
                    of_shard = records[place.shard]
                    flipped = flip and self.config.train.horizontal_flips
                    yield position, Own(place, of_shard[place.record], flipped) if of_shard else None
                position += 1
            del reads, records  # else three groups are held while the next one's reads end

    def _groups_from(self, position: int) -> Iterator[tuple[int, int, list[int]]]:
        """Epoch, first position and shards of every group from the one that holds the position on, without end."""
        epoch_images = self.manifest.num_images
        for epoch in itertools.count(position // epoch_images):
            start = epoch * epoch_images
            for group in epoch_groups(self.manifest, self.config.train.seed, epoch, self.config.data.shuffle_shards):
                end = start + sum(self.manifest.shards[shard].records for shard in group)
                if end > position:
                    yield epoch, start, group
                start = end


def read_ahead(
    config: Config, manifest: Manifest, groups: Iterable[list[Shard]]
) -> Iterator[list[Future[list[Record]]]]:
    """Each group's shards as they are being read, data.parallel_reads at a time, the next group's right behind."""
    url, cache = split_url(config, manifest.split), shard_cache(config)
    readers = ThreadPoolExecutor(config.data.parallel_reads, thread_name_prefix="shards")
    try:
        in_use: list[Future[list[Record]]] | None = None
        for group in groups:
            reads = [readers.submit(fetch, url, shard, cache) for shard in group]
            if in_use is not None:
                yield in_use
            in_use = reads
        if in_use is not None:
            yield in_use
    finally:
        readers.shutdown(wait=False, cancel_futures=True)


def evaluation_batches(
    config: Config, manifest: Manifest, batch_size: int, *, rank: int, world_size: int, images: int | None = None
) -> Iterator[Batch]:
    """This rank's batches of a split: every image exactly once over all ranks, the last batch as short as it is.

    With `images` it is the split's first so many that are read, or all where there are fewer.

    The split is cut into the same batches whatever the number of workers, and rank r takes the r-th run of them, so
    each image is computed in the same company and the sum over ranks doesn't depend on their number.
    """
    total = manifest.num_images if images is None else min(images, manifest.num_images)
    batches = -(-total // batch_size)
    first = min(total, rank * batches // world_size * batch_size)
    last = min(total, (rank + 1) * batches // world_size * batch_size)
    held: list[Record] = []
    ends = itertools.accumulate(shard.records for shard in manifest.shards)
    own = [
        (end, shard)
        for end, shard in zip(ends, manifest.shards, strict=True)
        if end > first and end - shard.records < last
    ]
    for (end, shard), (read,) in zip(own, read_ahead(config, manifest, [[shard] for _, shard in own]), strict=True):
        start = end - shard.records
        held += read.result()[max(0, first - start) : max(0, last - start)]
        while len(held) >= batch_size or (held and end >= last):
            yield _stack(held[:batch_size], manifest)
            held = held[batch_size:]


def _stack(records: list[Record], manifest: Manifest) -> Batch:
    images = np.stack([decode_png(record, manifest.shape) for record in records])
    return Batch(
        torch.from_numpy(images),
        torch.tensor([record.label for record in records]),
        [record.key for record in records],
        [len(records)],
    )
