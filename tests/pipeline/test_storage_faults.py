"""What object storage and networks do to a read, between our client and a real S3 server."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare
from pipeline.shards import fetch
from pipeline.storage import MissingObjectError, names_below, read, reads_resumed, write
from pipeline.stream import TrainingStream
from tests.conftest import free_port, tiny_config, wait_until
from tests.faulty_proxy import FaultyProxy, faulty_proxy


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """In front of the server of the `s3` fixture from now on; half a second without a byte is a broken connection."""
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.5)
    monkeypatch.setattr(storage, "READ_PAUSES", (0.01,) * 5)
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        storage._client.cache_clear()
        yield running


@pytest.fixture
def content(proxy: FaultyProxy, s3: str) -> bytes:
    """A megabyte or three at `object`, which no two places have alike."""
    found = b"".join(number.to_bytes(4, "big") for number in range(700_000))
    write(f"{s3}/object", found)
    return found


@pytest.mark.parametrize("fault", ["reset", "stall", "truncate"])
def test_a_body_that_breaks_off_goes_on_where_it_broke(fault: str, proxy: FaultyProxy, s3: str, content: bytes) -> None:
    before = reads_resumed()
    proxy.faults[:] = [fault, None, fault, fault]
    assert read(f"{s3}/object") == content
    assert read(f"{s3}/object", 1000, 2_000_000) == content[1000:2_001_000]
    assert proxy.met == [fault] * 3
    assert reads_resumed() == before + 3


def test_no_byte_is_asked_for_twice(
    proxy: FaultyProxy, s3: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_TIMEOUT", 30)  # a busy machine is no broken connection here
    storage._client.cache_clear()
    proxy.faults[:] = ["truncate"] * 3
    assert read(f"{s3}/object") == content
    assert proxy.sent == len(content)


def test_a_storm_of_503_passes(proxy: FaultyProxy, s3: str, content: bytes) -> None:
    proxy.faults[:] = ["503"] * 3
    assert read(f"{s3}/object") == content
    assert proxy.met == ["503"] * 3


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a worker that trains has it, with less to wait."""
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(storage, "PAUSE", 0.1)
    storage.be_patient(60)
    yield
    storage.be_patient(0)


def test_many_threads_outlast_a_server_that_is_gone_where_their_own_client_gives_up(
    s3: str, monkeypatch: pytest.MonkeyPatch, patience: None
) -> None:
    port, there = free_port(), os.environ["AWS_ENDPOINT_URL"]
    write(f"{s3}/object", b"content")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    storage._client.cache_clear()
    with ThreadPoolExecutor(48) as threads:
        reading = [threads.submit(read, f"{s3}/object") for _ in range(48)]
        listing, refused = threads.submit(names_below, s3), threads.submit(read, f"{s3}/nothing")
        time.sleep(3)
        assert not any(each.done() for each in reading)
        with faulty_proxy(there, port):
            assert {each.result(60) for each in reading} == {b"content"}
            assert listing.result(60) == ["object"]
            with pytest.raises(MissingObjectError):
                refused.result(60)


def test_patience_ends_with_the_address_named(s3: str, monkeypatch: pytest.MonkeyPatch, patience: None) -> None:
    storage.be_patient(0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    storage._client.cache_clear()
    with pytest.raises(UserError, match=f"{s3}/object: object storage can't be reached .*AWS_ENDPOINT_URL"):
        read(f"{s3}/object")


def test_faults_without_end_end_with_the_object_named(proxy: FaultyProxy, s3: str, content: bytes) -> None:
    proxy.faults[:] = ["truncate"] * 50
    with pytest.raises(UserError, match=f"{s3}/object: object storage can't be reached"):
        read(f"{s3}/object")
    assert len(proxy.met) == 6


@pytest.fixture
def on_s3(proxy: FaultyProxy, s3: str) -> Config:
    config = tiny_config(s3)
    prepare(config)
    return config


def test_a_bit_that_flipped_on_the_way_is_read_again(proxy: FaultyProxy, on_s3: Config) -> None:
    url, shard = f"{on_s3.data.url}/train", load_manifest(on_s3, "train").shards[0]
    whole = fetch(url, shard)
    proxy.faults[:] = ["flip"]
    assert fetch(url, shard) == whole
    proxy.faults[:] = ["flip", "flip"]
    with pytest.raises(UserError, match=rf"{shard.file}: wrong sha256"):
        fetch(url, shard)
    assert proxy.met == ["flip"] * 3


def reads_under_way() -> bool:
    return any(thread.name.startswith("shards") for thread in threading.enumerate())


def test_a_manifest_spoilt_on_its_way_is_read_again(proxy: FaultyProxy, on_s3: Config) -> None:
    expected = load_manifest(on_s3, "train")
    proxy.faults[:] = ["flip"]
    assert load_manifest(on_s3, "train") == expected


def test_the_stream_gives_the_same_images_in_any_weather(proxy: FaultyProxy, on_s3: Config) -> None:
    def keys() -> list[list[str]]:
        manifest = load_manifest(on_s3, "train")
        with TrainingStream(on_s3, manifest, rank=0, world_size=1, images_seen=0) as stream:
            return [next(stream).keys for _ in range(40)]

    fair = keys()
    wait_until(lambda: not reads_under_way(), 30, "the reads ahead of a stream that was left")
    proxy.faults[:] = [None, "503", "flip", "reset", "stall", "truncate", "503", "reset", "truncate"]
    assert keys() == fair
    assert len(proxy.met) == 8
