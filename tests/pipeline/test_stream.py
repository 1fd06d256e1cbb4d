import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config, changed_result_keys
from pipeline.errors import UserError
from pipeline.manifest import Manifest, Shard, load_manifest, split_url
from pipeline.prepare import prepare
from pipeline.shards import decode_png, fetch
from pipeline.stream import TrainingStream, epoch_groups, evaluation_batches, group_places
from tests.conftest import tiny_config


def keys_of(config: Config, batches: int, *, world_size: int = 1, images_seen: int = 0) -> list[str]:
    """The record keys of the global batches, put together from all ranks."""
    manifest = load_manifest(config, "train")
    per_rank = []
    for rank in range(world_size):
        with TrainingStream(config, manifest, rank=rank, world_size=world_size, images_seen=images_seen) as stream:
            per_rank.append([batch.keys for batch in itertools.islice(stream, batches)])
    return [key for step in range(batches) for rank in range(world_size) for key in per_rank[rank][step]]


def test_every_image_comes_exactly_once_an_epoch_and_none_is_dropped(digits: Config) -> None:
    manifest = load_manifest(digits, "train")
    total = manifest.num_images
    keys = keys_of(digits, batches=2 * total // 32 + 1)
    assert len(set(keys[:total])) == total
    assert Counter(keys[: 2 * total]) == Counter(dict.fromkeys(keys[:total], 2))
    assert keys[:total] != keys[total : 2 * total]


def test_order_is_the_same_for_any_number_of_workers_and_from_any_place(digits: Config) -> None:
    undisturbed = keys_of(digits, batches=60)
    for world_size in (2, 4):
        assert keys_of(digits, batches=60, world_size=world_size) == undisturbed
    for seen in (1, 17, 51, 59):
        assert keys_of(digits, batches=60 - seen, images_seen=seen * 32, world_size=2) == undisturbed[seen * 32 :]


def test_killed_streams_go_on_with_other_numbers_of_workers(tmp_path: Path) -> None:
    """Twenty seeds, each killed at two places in two epochs: 2, then 4, then 1 worker."""
    prepared = tiny_config(tmp_path, data={"holdout_fraction": 0.8, "records_per_shard": 40})
    images = prepare(prepared)["train"].num_images
    places = random.Random(0)
    for seed in range(20):
        config = prepared.model_copy(update={"train": prepared.train.model_copy(update={"seed": seed})})
        undisturbed = keys_of(config, batches=24)
        assert Counter(undisturbed[:images]) == Counter(undisturbed[images : 2 * images])
        first, second = sorted(places.sample(range(1, 24), 2))
        met = keys_of(config, first, world_size=2)
        met += keys_of(config, second - first, world_size=4, images_seen=first * 32)
        met += keys_of(config, 24 - second, world_size=1, images_seen=second * 32)
        assert met == undisturbed


@pytest.mark.parametrize(("shuffle_shards", "least"), [(1, 0.0), (2, 0.45), (8, 0.85), (32, 0.95), (128, 0.98)])
def test_neighbours_come_from_nearly_as_far_apart_as_in_a_uniform_permutation(
    shuffle_shards: int, least: float
) -> None:
    """Mean distance in the manifest of images that follow each other, over a third of all, as of a uniform order.

    Only one pair in shuffle_shards is of the same shard, so the distance is that much smaller.
    """
    shards = tuple(Shard(file=f"{number}", records=100, bytes=1, sha256="") for number in range(128))
    manifest = manifest_of(shards)
    order = [
        place.shard * 100 + place.record
        for group in epoch_groups(manifest, 0, 0, shuffle_shards)
        for place in group_places(manifest, group, 0, 0)
    ]
    assert sorted(order) == list(range(12_800))
    distance = sum(abs(one - other) for one, other in itertools.pairwise(order)) / (len(order) - 1)
    uniform = len(order) / 3
    assert least < distance / uniform < 1.02
    assert distance / uniform == pytest.approx(1 - 1 / shuffle_shards, abs=0.03)


def test_order_follows_the_seed(digits: Config) -> None:
    other = digits.model_copy(update={"train": digits.train.model_copy(update={"seed": 1})})
    assert keys_of(digits, 5) == keys_of(digits, 5)
    assert keys_of(digits, 5) != keys_of(other, 5)


def test_batches_hold_the_images_and_labels_of_their_keys(digits: Config) -> None:
    manifest = load_manifest(digits, "train")
    real = {record.key: record for shard in manifest.shards for record in fetch(split_url(digits, "train"), shard)}
    with TrainingStream(digits, manifest, rank=1, world_size=2, images_seen=0) as stream:
        batch = next(stream)
        assert stream.images_seen == 32
    assert batch.images.shape == (16, 1, 8, 8)
    assert batch.images.dtype == torch.uint8
    for image, label, key in zip(batch.images, batch.labels, batch.keys, strict=True):
        assert label == real[key].label
        assert torch.equal(image, torch.from_numpy(decode_png(real[key], manifest.shape).copy()))


def manifest_of(shards: tuple[Shard, ...]) -> Manifest:
    return Manifest(
        name="a", version="a", split="train", shape=(1, 2, 2), levels=2, resize="none", classes=("a",), prepare_seed=0,
        shards=shards,
    )  # fmt: skip


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=9), seed=st.integers(0, 9), epoch=st.integers(0, 3),
    shuffle_shards=st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_groups_hold_every_place_once(counts: list[int], seed: int, epoch: int, shuffle_shards: int) -> None:
    shards = tuple(Shard(file=f"{i}", records=count, bytes=1, sha256="") for i, count in enumerate(counts))
    manifest = manifest_of(shards)
    groups = epoch_groups(manifest, seed, epoch, shuffle_shards)
    places = [place for group in groups for place in group_places(manifest, group, seed, epoch)]
    expected = Counter((shard, record) for shard, count in enumerate(counts) for record in range(count))
    assert Counter((place.shard, place.record) for place in places) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 50, 64, 1000])
def test_evaluation_reads_every_image_once_in_the_same_batches(
    digits: Config, world_size: int, batch_size: int
) -> None:
    manifest = load_manifest(digits, "val")
    alone = [batch.keys for batch in evaluation_batches(digits, manifest, batch_size, rank=0, world_size=1)]
    together = [
        batch.keys
        for rank in range(world_size)
        for batch in evaluation_batches(digits, manifest, batch_size, rank=rank, world_size=world_size)
    ]
    assert together == alone
    assert len({key for keys in alone for key in keys}) == sum(map(len, alone)) == manifest.num_images


@pytest.mark.parametrize(("images", "world_size"), [(1, 2), (64, 3), (170, 2), (1000, 2)])
def test_evaluation_reads_the_first_images_only_where_asked(digits: Config, images: int, world_size: int) -> None:
    manifest = load_manifest(digits, "val")
    alone = [key for batch in evaluation_batches(digits, manifest, 32, rank=0, world_size=1) for key in batch.keys]
    together = [
        key
        for rank in range(world_size)
        for batch in evaluation_batches(digits, manifest, 32, rank=rank, world_size=world_size, images=images)
        for key in batch.keys
    ]
    assert together == alone[:images]


def test_spoilt_shard_ends_the_stream_with_its_name(digits: Config) -> None:
    manifest = load_manifest(digits, "train")
    with open(f"{digits.data.url}/train/{manifest.shards[0].file}", "ab") as shard:
        shard.write(b"x")
    with TrainingStream(digits, manifest, rank=0, world_size=1, images_seen=0) as stream:
        batches = itertools.islice(stream, 60)
        with pytest.raises(UserError, match=r"shard-000000\.tar: truncated or altered"):
            list(batches)


def without(config: Config, *shards: int) -> Config:
    """A configuration that skips bad shards, whose training shards of these numbers are spoilt."""
    manifest = load_manifest(config, "train")
    for number in shards:
        Path(config.data.url, "train", manifest.shards[number].file).write_bytes(b"spoilt")
    return config.model_copy(update={"data": config.data.model_copy(update={"on_bad_shard": "skip"})})


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_skipped_records_leave_every_other_one_in_its_batch(digits: Config, world_size: int) -> None:
    manifest = load_manifest(digits, "train")
    lost = {record.key for number in (0, 3) for record in fetch(split_url(digits, "train"), manifest.shards[number])}

    def batches(config: Config, rank: int) -> list[list[str]]:
        with TrainingStream(config, manifest, rank=rank, world_size=world_size, images_seen=0) as stream:
            return [batch.keys for batch in itertools.islice(stream, manifest.num_images // 32)]

    whole = [batches(digits, rank) for rank in range(world_size)]
    spoilt = without(digits, 0, 3)
    found = [batches(spoilt, rank) for rank in range(world_size)]
    assert found == [[[key for key in keys if key not in lost] for keys in of_rank] for of_rank in whole]


def test_what_is_skipped_is_told_and_counted(digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config, manifest = without(digits, 0), load_manifest(digits, "train")
    with TrainingStream(config, manifest, rank=0, world_size=1, images_seen=0) as stream:
        while stream.images_seen < 2 * manifest.num_images:
            next(stream)
    lost = manifest.shards[0].records
    assert 2 * lost <= stream.records_skipped <= 3 * lost, "those of two epochs, and some of the one that is read ahead"
    assert "rank 0 skips: " in (told := capsys.readouterr().out)
    assert "shard-000000.tar: truncated or altered" in told


def images_by_position(
    config: Config, batches: int, *, world_size: int = 1, images_seen: int = 0
) -> list[torch.Tensor]:
    """The images of the global batches, put together from all ranks."""
    manifest = load_manifest(config, "train")
    per_rank = []
    for rank in range(world_size):
        with TrainingStream(config, manifest, rank=rank, world_size=world_size, images_seen=images_seen) as stream:
            per_rank.append([batch.images for batch in itertools.islice(stream, batches)])
    return [torch.cat([per_rank[rank][step] for rank in range(world_size)]) for step in range(batches)]


def labels_of(config: Config, batches: int) -> list[int]:
    with TrainingStream(config, load_manifest(config, "train"), rank=0, world_size=1, images_seen=0) as stream:
        return [label for batch in itertools.islice(stream, batches) for label in batch.labels.tolist()]


def test_flips_mirror_half_of_the_images_anew_each_epoch_and_nothing_else(digits: Config) -> None:
    flipping = digits.model_copy(update={"train": digits.train.model_copy(update={"horizontal_flips": True})})
    batches = 2 * load_manifest(digits, "train").num_images // 32
    plain, flipped = (torch.cat(images_by_position(config, batches)) for config in (digits, flipping))
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert ((flipped == plain).flatten(1).all(1) | mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55
    assert keys_of(flipping, batches) == keys_of(digits, batches)
    times = Counter(key for key, one in zip(keys_of(digits, batches), mirrored.tolist(), strict=True) if one)
    assert set(times.values()) == {1, 2}
    assert labels_of(flipping, 10) == labels_of(digits, 10)
    assert changed_result_keys(digits, flipping) == ["train.horizontal_flips (was False, now True)"]


def test_flips_are_the_same_for_any_number_of_workers_and_from_any_place(digits: Config) -> None:
    config = digits.model_copy(update={"train": digits.train.model_copy(update={"horizontal_flips": True})})
    undisturbed = images_by_position(config, 60)
    for world_size, seen in ((2, 0), (4, 0), (1, 17), (2, 51), (1, 59)):
        met = images_by_position(config, 60 - seen, world_size=world_size, images_seen=seen * 32)
        assert all(torch.equal(one, other) for one, other in zip(met, undisturbed[seen:], strict=True))


def test_evaluation_never_flips(digits: Config) -> None:
    config = digits.model_copy(update={"train": digits.train.model_copy(update={"horizontal_flips": True})})
    manifest = load_manifest(digits, "val")
    pairs = zip(
        evaluation_batches(digits, manifest, 50, rank=0, world_size=1),
        evaluation_batches(config, manifest, 50, rank=0, world_size=1),
        strict=True,
    )
    assert all(torch.equal(one.images, other.images) for one, other in pairs)
