"""`prepare` as Ray tasks on a real cluster of this machine, whose driver is a process of its own."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from pipeline import spread
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.mailbox import Mailbox
from pipeline.manifest import Manifest
from pipeline.prepare import prepare
from pipeline.ray_cluster import UNNEEDED, ray, start_cluster, started_here
from pipeline.tasks import map_tasks, own_cluster
from tests.conftest import tiny_config
from tests.pipeline.test_imagenet_sources import config_of, odd_files

Driver = Callable[..., Any]


@pytest.fixture(scope="module")
def one_cluster(driver: Driver) -> Iterator[None]:
    driver(start_cluster, 2)
    yield
    driver(ray.shutdown)


def in_tasks(config: Config) -> dict[str, Manifest]:
    with mock.patch.object(spread, "IMAGES_IN_PROCESS", 0):
        return prepare(config)


def environment(_: int) -> dict[str, str]:
    return dict(os.environ)


def what_a_cluster_starts() -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Ray's workers below the driver once one has work, and the environments of the driver and of a task."""
    mailbox = Mailbox()
    ray.get(mailbox.print("its process is up"))
    workers = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended since
            workers += re.findall(r"^ray::(?!\w+Agent).*|^\S*python\S* \S*default_worker.*", " ".join(each.cmdline()))
    ray.kill(mailbox.actor)
    ((_, inherited),) = map_tasks(environment, [0])
    return workers, dict(os.environ), inherited


def test_a_cluster_of_this_process_starts_nothing_that_nobody_asked_for(driver: Driver, one_cluster: None) -> None:
    workers, own, inherited = driver(what_a_cluster_starts)
    assert len(workers) == 1, workers
    assert not UNNEEDED.keys() & own.keys()  # in which this process may join another cluster
    assert {name: inherited.get(name) for name in UNNEEDED} == UNNEEDED


def in_task(_: int) -> bool:
    return started_here()


def of_a_task() -> bool:
    ((_, told),) = map_tasks(in_task, [0])
    return told


def test_a_cluster_is_its_drivers_own_and_not_a_tasks(driver: Driver, one_cluster: None) -> None:
    assert driver(started_here)
    assert not driver(of_a_task)
    assert not started_here()  # of a process without one


def test_tasks_write_what_one_process_writes(tmp_path: Path, driver: Driver, one_cluster: None) -> None:
    alone = prepare(tiny_config(tmp_path / "alone"))
    written = driver(in_tasks, tiny_config(tmp_path / "spread"))
    assert {split: manifest.digest for split, manifest in written.items()} == {
        split: manifest.digest for split, manifest in alone.items()
    }
    assert sorted(path.name for path in (tmp_path / "spread" / "data").rglob("*")) == sorted(
        path.name for path in (tmp_path / "alone" / "data").rglob("*")
    )


def test_what_a_task_could_not_read_is_told_as_by_one_process(
    tmp_path: Path, driver: Driver, one_cluster: None
) -> None:
    odd_files(tmp_path / "source")
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1)
    with pytest.raises(UserError, match=r"\.JPEG: can't be decoded as an image .*--data.max-unreadable$"):
        driver(in_tasks, config)
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, max_unreadable=3)
    assert driver(in_tasks, config)["train"].num_images == 4


def test_an_error_of_a_task_is_the_persons_error(tmp_path: Path, driver: Driver, one_cluster: None) -> None:
    odd_files(tmp_path / "source")
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, max_unreadable=3, resize="none")
    with pytest.raises(UserError, match=r"data.image_size is 8.*--data.resize box$"):
        driver(in_tasks, config)


def with_clusters_of_their_own(config: Config) -> tuple[list[float], set[str], int]:
    """The CPUs that two tasks' cluster has; and which splits `prepare` writes, on how many clusters."""
    ray.shutdown()
    found = []
    with own_cluster():
        for _ in map_tasks(str, [1, 2]):
            found.append(ray.cluster_resources()["CPU"])
    assert not ray.is_initialized()
    with mock.patch.object(ray, "init", wraps=ray.init) as init:
        written = in_tasks(config).keys()
    assert not ray.is_initialized()
    return found, set(written), init.call_count


def test_a_cluster_started_for_tasks_claims_this_machine_and_ends_with_them(tmp_path: Path, driver: Driver) -> None:
    """Whatever the preset's GPU workers would want, and one for all splits."""
    config = tiny_config(tmp_path, cluster={"num_workers": 32, "cpus_per_worker": 8})
    assert driver(with_clusters_of_their_own, config) == ([os.cpu_count()] * 2, {"train", "val"}, 1)
