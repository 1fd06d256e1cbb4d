"""The same training whatever the number of workers: processes with gloo between them, without Ray."""

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.learner import Learner
from pipeline.manifest import load_manifest
from pipeline.stream import own_parts
from tests.conftest import LocalWorker, free_port
from tests.pipeline.test_train import changed

STEPS = 5


@pytest.mark.parametrize(("size", "workers"), [(32, 3), (64, 8), (7, 7), (10, 4)])
def test_parts_cover_a_batch_once_and_are_no_larger_for_few_workers(size: int, workers: int, digits: Config) -> None:
    config = changed(digits, train={"batch_size": size}, cluster={"num_workers": workers})
    for world_size in range(1, workers + 1):
        parts = [own_parts(config, rank, world_size) for rank in range(world_size)]
        numbers = [number for own in parts for number in own]
        places = [place for own in parts for part in own.values() for place in part]
        assert numbers == list(range(workers))
        assert places == list(range(size))
        assert max(len(part) for own in parts for part in own.values()) == -(-size // workers)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _train(rank: int, world_size: int, port: int, folder: str, config: Config) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    learner = Learner(config, LocalWorker("", rank, world_size), load_manifest(config, "train"))
    learner.restore()
    losses, keys = [], []
    with learner.stream() as stream:
        for batch in itertools.islice(stream, STEPS):
            total = learner.advance(batch)[0]
            torch.distributed.all_reduce(total)
            losses.append(total.item())
            keys.append(batch.keys)
    torch.save((losses, keys, learner.model.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def trained_by(world_size: int, folder: Path, config: Config) -> tuple[list[float], list[list[str]], dict[str, Tensor]]:
    """Loss and keys of each step and the final weights, all ranks' put together."""
    folder.mkdir()
    torch.multiprocessing.spawn(_train, (world_size, free_port(), str(folder), config), nprocs=world_size)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
    keys = [list(itertools.chain(*(rank[1][step] for rank in ranks))) for step in range(STEPS)]
    return ranks[0][0], keys, ranks[0][2]


@pytest.mark.filterwarnings("ignore:find_unused_parameters")
def test_fewer_workers_train_the_same_up_to_rounding(tmp_path: Path, digits: Config) -> None:
    """With dropout, and a batch of 32 that three don't divide."""
    config = changed(digits, cluster={"num_workers": 3}, model={"dropout": 0.3})
    losses, keys, weights = trained_by(3, tmp_path / "3", config)
    assert len(set(itertools.chain(*keys))) == STEPS * 32
    for world_size in (1, 2):
        fewer_losses, fewer_keys, fewer_weights = trained_by(world_size, tmp_path / str(world_size), config)
        assert fewer_keys == keys
        assert fewer_losses == pytest.approx(losses, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(fewer_weights[name], weight, rtol=0, atol=1e-5)


def test_more_least_workers_than_workers_are_refused(digits: Config) -> None:
    with pytest.raises(UserError, match=r"cluster\.min_workers 3 is more than cluster\.num_workers 2"):
        changed(digits, cluster={"num_workers": 2, "min_workers": 3})
    with pytest.raises(UserError, match=r"train\.batch_size 2 is less than cluster\.num_workers 3"):
        changed(digits, cluster={"num_workers": 3}, train={"batch_size": 2})
