"""`prepare` as Ray tasks on a real cluster of this machine."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import spread
from pipeline.errors import UserError
from pipeline.mailbox import Mailbox
from pipeline.prepare import prepare
from pipeline.ray_cluster import UNNEEDED, ray, start_cluster
from pipeline.tasks import map_tasks, own_cluster
from tests.conftest import tiny_config
from tests.pipeline.test_imagenet_sources import config_of, odd_files


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[None]:
    start_cluster(2)
    yield
    ray.shutdown()


@pytest.fixture
def always_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "IMAGES_IN_PROCESS", 0)


def environment(_: int) -> dict[str, str]:
    return dict(os.environ)


def test_a_cluster_of_this_process_starts_nothing_that_nobody_asked_for(one_cluster: None) -> None:
    mailbox = Mailbox()
    ray.get(mailbox.print("its process is up"))
    workers = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended since
            workers += re.findall(r"^ray::(?!\w+Agent).*|^\S*python\S* \S*default_worker.*", " ".join(each.cmdline()))
    ray.kill(mailbox.actor)
    assert len(workers) == 1, workers
    assert not UNNEEDED.keys() & os.environ.keys()  # in which this process may join another cluster
    ((_, inherited),) = map_tasks(environment, [0])
    assert {name: inherited.get(name) for name in UNNEEDED} == UNNEEDED


def test_tasks_write_what_one_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_cluster: None
) -> None:
    alone = prepare(tiny_config(tmp_path / "alone"))
    monkeypatch.setattr(spread, "IMAGES_IN_PROCESS", 0)
    written = prepare(tiny_config(tmp_path / "spread"))
    assert {split: manifest.digest for split, manifest in written.items()} == {
        split: manifest.digest for split, manifest in alone.items()
    }
    assert sorted(path.name for path in (tmp_path / "spread" / "data").rglob("*")) == sorted(
        path.name for path in (tmp_path / "alone" / "data").rglob("*")
    )


def test_what_a_task_could_not_read_is_told_as_by_one_process(
    tmp_path: Path, always_tasks: None, one_cluster: None
) -> None:
    odd_files(tmp_path / "source")
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1)
    with pytest.raises(UserError, match=r"\.JPEG: can't be decoded as an image .*--data.max-unreadable$"):
        prepare(config)
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, max_unreadable=3)
    assert prepare(config)["train"].num_images == 4


def test_an_error_of_a_task_is_the_persons_error(tmp_path: Path, always_tasks: None, one_cluster: None) -> None:
    odd_files(tmp_path / "source")
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, max_unreadable=3, resize="none")
    with pytest.raises(UserError, match=r"data.image_size is 8.*--data.resize box$"):
        prepare(config)


def test_a_cluster_started_for_tasks_claims_this_machine_and_ends_with_them(
    tmp_path: Path, always_tasks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the preset's GPU workers would want, and one for all splits."""
    config = tiny_config(tmp_path, cluster={"num_workers": 32, "cpus_per_worker": 8})
    ray.shutdown()
    found = []
    with own_cluster():
        for _ in map_tasks(str, [1, 2]):
            found.append(ray.cluster_resources()["CPU"])
    assert found == [os.cpu_count()] * 2
    assert not ray.is_initialized()
    started, init = [], ray.init
    monkeypatch.setattr(ray, "init", lambda **words: started.append(words) or init(**words))
    assert prepare(config).keys() == {"train", "val"}
    assert len(started) == 1
    assert not ray.is_initialized()
