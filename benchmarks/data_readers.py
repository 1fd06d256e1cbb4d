"""One reader of one data set in a process of its own; `benchmarks.data` starts it and reads its line of JSON.

    python -m benchmarks.data_readers READER FROM S3_URL CACHE_FOLDER NUM_WORKERS

FROM is the image of the epoch to begin at. From 0 the epoch's whole batches are read; from elsewhere the first batch
only. Every reader gives batches of 128 uint8 images, decoded by Pillow from the same PNG bytes, with their labels.
"""

import importlib.machinery
import io
import itertools
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.lone_worker import changed
from pipeline.config import Config
from pipeline.manifest import load_manifest
from pipeline.presets import PRESETS
from pipeline.stream import TrainingStream

BATCH = 128


def config_of(url: str, cache: str) -> Config:
    """CIFAR-10 at a URL, in steps of 128 images."""
    return changed(
        PRESETS["cifar10-small"].config,
        data={"url": f"{url}/ours", "cache_folder": cache},
        train={"batch_size": BATCH},
        cluster={"num_workers": 1},
    )


def decoded(png: bytes) -> Tensor:
    """A PNG's levels, [3, 32, 32]."""
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1).copy())


def ours(url: str, cache: str, start: int, num_workers: int) -> Iterator[int]:
    """Our stream, whose read-ahead is a thread."""
    config = config_of(url, cache)
    manifest = load_manifest(config, "train")
    with TrainingStream(config, manifest, rank=0, world_size=1, images_seen=start) as stream:
        for batch in stream:
            yield len(batch.images)


def webdataset(url: str, cache: str, start: int, num_workers: int) -> Iterator[int]:
    """Plain WebDataset over our tars; it can't resume, so what was consumed is read again and passed over."""
    import webdataset as wds
    from webdataset.gopen import gopen_schemes

    client = boto3.client("s3")

    def opened(address: str, mode: str, bufsize: int) -> Any:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        return client.get_object(Bucket=bucket, Key=key)["Body"]

    gopen_schemes["s3"] = opened
    manifest = load_manifest(config_of(url, cache), "train")
    urls = [f"{url}/ours/train/{shard.file}" for shard in manifest.shards]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=1, cache_dir=cache, empty_check=False)
    samples = dataset.shuffle(1000).slice(start, None).to_tuple("png", "cls").map_tuple(decoded, int)
    for images, _ in DataLoader(samples, batch_size=BATCH, num_workers=num_workers):
        yield len(images)


class _Decoded:
    """What the data sets of both libraries below do with a sample."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = super().__getitem__(index)  # type: ignore[misc]
        return decoded(sample["png"]), int(sample["label"])


def litdata(url: str, cache: str, start: int, num_workers: int) -> Iterator[int]:
    """LitData's StreamingDataset and StreamingDataLoader."""
    import litdata
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the server of this machine has no certificate

    class Images(_Decoded, litdata.StreamingDataset): ...

    dataset = Images(f"{url}/litdata", cache_dir=cache, shuffle=True, storage_options=_endpoint())
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=num_workers)
    yield from _resumed(loader, cache, start)


def mosaicml(url: str, cache: str, start: int, num_workers: int) -> Iterator[int]:
    """MosaicML's StreamingDataset and StreamingDataLoader."""
    without_torchvision()
    import streaming

    class Images(_Decoded, streaming.StreamingDataset): ...

    dataset = Images(remote=f"{url}/mosaicml", local=f"{cache}/shards", shuffle=True, batch_size=BATCH)
    loader = streaming.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=num_workers)
    yield from _resumed(loader, cache, start)


def _resumed(loader: Any, cache: str, start: int) -> Iterator[int]:
    """The loader's batches; a whole epoch leaves behind its state in the middle, from which the next goes on."""
    path = f"{cache}.state"
    if start:
        with open(path) as file:
            loader.load_state_dict(json.load(file))
    for count, (images, _) in enumerate(loader, 1):
        if not start and count == resume_batch():
            with open(path, "w") as file:
                json.dump(loader.state_dict(), file)
        yield len(images)


def resume_batch() -> int:
    """The batch after which a run is cut off: the middle of the epoch."""
    return 195


def without_torchvision() -> None:
    """Make mosaicml-streaming importable on a CPU: torchvision's build wants CUDA, and serves data sets unused here."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def _endpoint() -> dict[str, str]:
    return {
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
    }


def processor_seconds() -> float:
    """CPU time of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


READERS: dict[str, Callable[[str, str, int, int], Iterator[int]]] = {
    "ours": ours,
    "webdataset": webdataset,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml,
}


def main() -> None:
    """Read, and print what it took."""
    reader, start, url, cache, num_workers = sys.argv[1:]
    os.makedirs(cache, exist_ok=True)
    torch.set_num_threads(1)
    whole = load_manifest(config_of(url, cache), "train").num_images // BATCH
    batches = READERS[reader](url, cache, int(start), int(num_workers))
    processor, started = processor_seconds(), time.perf_counter()
    images = next(batches)
    first = time.perf_counter() - started
    images += sum(itertools.islice(batches, 0 if int(start) else whole - 1))
    seconds = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    busy = processor_seconds() - processor
    print(json.dumps({"images": images, "seconds": seconds, "processor": busy, "first": first}), flush=True)


if __name__ == "__main__":
    main()
