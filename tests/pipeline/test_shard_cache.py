import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest import Shard, load_manifest
from pipeline.prepare import prepare
from pipeline.shard_cache import ShardCache
from pipeline.stream import TrainingStream, evaluation_batches
from tests.conftest import tiny_config
from tests.faulty_proxy import faulty_proxy


def shard_of(content: bytes) -> Shard:
    return Shard(file="s.tar", records=1, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class Store:
    """Object storage that counts how often it is asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.reads = content, 0

    def load(self) -> bytes:
        self.reads += 1
        time.sleep(0.05)
        return self.content

    def get(self, cache: ShardCache) -> bytes:
        return cache.get(shard_of(self.content), self.load)


def kept(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.tar")}


def test_a_shard_is_loaded_once_by_many_at_once(tmp_path: Path) -> None:
    store, found = Store(b"a" * 1000), []
    readers = [
        threading.Thread(target=lambda: found.append(store.get(ShardCache(str(tmp_path), 10_000)))) for _ in range(8)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [store.content] * 8
    assert store.reads == 1


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache, stores = ShardCache(str(tmp_path), 3000), [Store(bytes([number]) * 1000) for number in range(4)]
    for number, store in enumerate(stores[:3]):
        store.get(cache)
        os.utime(tmp_path / f"{shard_of(store.content).sha256}.tar", (number, number))
    stores[0].get(cache)
    stores[3].get(cache)
    assert kept(tmp_path) == {shard_of(stores[number].content).sha256 for number in (0, 2, 3)}
    assert [store.reads for store in stores] == [1, 1, 1, 1]
    larger = Store(b"b" * 3001)
    assert larger.get(cache) == larger.content
    assert len(kept(tmp_path)) == 3, "what can't fit drives nothing out"


@pytest.mark.parametrize("spoilt", [b"", b"a" * 999, b"a" * 999 + b"b"])
def test_a_spoilt_file_is_loaded_anew(spoilt: bytes, tmp_path: Path) -> None:
    cache, store = ShardCache(str(tmp_path), 1500), Store(b"a" * 1000)
    path = tmp_path / f"{shard_of(store.content).sha256}.tar"
    path.write_bytes(spoilt)
    assert store.get(cache) == store.content
    assert path.read_bytes() == store.content
    assert store.reads == 1


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    (tmp_path / "dead.part").write_bytes(b"half")
    Store(b"a").get(ShardCache(str(tmp_path), 1000))
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_costs_the_cache_and_not_the_run(small_disk: Path) -> None:
    cache, store = ShardCache(str(small_disk), 10_000_000), Store(b"a" * 2_000_000)
    with pytest.warns(RuntimeWarning, match=r"data.cache_folder .*No space left"):
        assert store.get(cache) == store.content
    assert not list(small_disk.glob("*.part"))
    assert not kept(small_disk)


def test_a_folder_that_cannot_be_made_is_told_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"data\.cache_folder {tmp_path}/file/cache: Not a directory; name a folder"):
        ShardCache(f"{tmp_path}/file/cache", 1000)


def test_later_epochs_read_no_object_storage(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(s3, data={"cache_folder": str(tmp_path / "cache")})
    manifests = prepare(config)
    train, val = load_manifest(config, "train"), load_manifest(config, "val")
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage._client.cache_clear()
        for rank in (0, 1):
            with TrainingStream(config, train, rank=rank, world_size=2, images_seen=0) as stream:
                images = sum(len(next(stream).keys) for _ in range(3 * train.num_images // config.train.batch_size))
            assert images > train.num_images
        for _ in range(2):
            list(evaluation_batches(config, val, 50, rank=0, world_size=1))
        assert proxy.sent == sum(shard.bytes for manifest in manifests.values() for shard in manifest.shards)
