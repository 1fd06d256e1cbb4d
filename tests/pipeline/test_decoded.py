from collections import Counter

import numpy as np
import pytest
import torch

import pipeline.decoded
from pipeline.config import Config
from pipeline.decoded import DecodedImages
from pipeline.errors import UserError
from pipeline.manifest import load_manifest, split_url
from pipeline.shards import Record, decode_png, fetch
from tests.pipeline.test_stream import images_by_position
from tests.pipeline.test_train import changed


@pytest.fixture
def times_decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the image of each record key was decoded."""
    times = Counter[str]()

    def counted(record: Record, shape: tuple[int, int, int]) -> np.ndarray:
        times[record.key] += 1
        return decode_png(record, shape)

    monkeypatch.setattr(pipeline.decoded, "decode_png", counted)
    return times


def keeping(config: Config, gigabytes: float) -> Config:
    return changed(config, data={"decoded_gigabytes": gigabytes}, train={"horizontal_flips": True})


def batches_in(config: Config, epochs: int) -> int:
    return epochs * -(-load_manifest(config, "train").num_images // config.train.batch_size)


def test_a_kept_split_gives_the_same_batches_and_decodes_each_image_once(
    digits: Config, times_decoded: Counter[str]
) -> None:
    batches = batches_in(digits, epochs=3)
    kept = images_by_position(keeping(digits, 0.5), batches)
    assert set(times_decoded.values()) == {1}
    assert len(times_decoded) == load_manifest(digits, "train").num_images
    times_decoded.clear()
    anew = images_by_position(keeping(digits, 0.0), batches)
    assert min(times_decoded.values()) >= 3
    assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))


def test_each_rank_keeps_its_own_images(digits: Config) -> None:
    batches = batches_in(digits, epochs=2)
    together = images_by_position(keeping(digits, 0.5), batches, world_size=2)
    alone = images_by_position(keeping(digits, 0.0), batches)
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_split_is_kept_up_to_the_bytes_of_its_images(digits: Config, times_decoded: Counter[str]) -> None:
    manifest = load_manifest(digits, "train")
    (record, *_) = fetch(split_url(digits, "train"), manifest.shards[1])
    size = manifest.num_images * 64 / 1e9
    for gigabytes, times in ((size, 1), (size - 1e-9, 2)):
        times_decoded.clear()
        images = DecodedImages(manifest, gigabytes)
        first, second = (images.image(1, 0, record) for _ in range(2))
        assert (first == second).all()
        assert (first == decode_png(record, manifest.shape)).all()
        assert times_decoded[record.key] == times


def test_a_record_that_is_no_image_is_refused_each_time(digits: Config) -> None:
    manifest = load_manifest(digits, "train")
    images = DecodedImages(manifest, 0.5)
    for _ in range(2):
        with pytest.raises(UserError, match=r"record torn: its png can't be decoded"):
            images.image(0, 0, Record("torn", b"spoilt", 0))
    (record, *_) = fetch(split_url(digits, "train"), manifest.shards[0])
    assert (images.image(0, 0, record) == decode_png(record, manifest.shape)).all()
