"""The same training whatever the number of workers: processes with gloo between them, without Ray."""

import itertools
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
from tests.conftest import LocalWorker
from tests.pipeline.test_train import changed

STEPS = 5
WORLD_SIZES = (3, 2, 1)


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


def _train(rank: int, folder: str, config: Config) -> None:
    """Be the rank of one group of workers after the other, of those that have it."""
    for world_size in WORLD_SIZES:
        if rank < world_size:
            meeting = f"file://{folder}/meeting-of-{world_size}"
            torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
            torch.save(_trained(rank, world_size, config), f"{folder}/{rank}-of-{world_size}.pt")
            torch.distributed.destroy_process_group()


def _trained(rank: int, world_size: int, config: Config) -> tuple[list[float], list[list[str]], dict[str, Tensor]]:
    """Loss and own keys of each step and the final weights."""
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
    return losses, keys, learner.model.state_dict()


@pytest.mark.filterwarnings("ignore:find_unused_parameters")
def test_fewer_workers_train_the_same_up_to_rounding(tmp_path: Path, digits: Config) -> None:
    """With dropout, and a batch of 32 that three don't divide."""
    config = changed(digits, cluster={"num_workers": 3}, model={"dropout": 0.3})
    torch.multiprocessing.spawn(_train, (str(tmp_path), config), nprocs=3)
    groups = {
        world_size: [torch.load(tmp_path / f"{rank}-of-{world_size}.pt") for rank in range(world_size)]
        for world_size in WORLD_SIZES
    }
    keys = {
        world_size: [list(itertools.chain(*(rank[1][step] for rank in ranks))) for step in range(STEPS)]
        for world_size, ranks in groups.items()
    }
    assert len(set(itertools.chain(*keys[3]))) == STEPS * 32
    losses, _, weights = groups[3][0]
    for world_size in (1, 2):
        fewer_losses, _, fewer_weights = groups[world_size][0]
        assert keys[world_size] == keys[3]
        assert fewer_losses == pytest.approx(losses, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(fewer_weights[name], weight, rtol=0, atol=1e-5)


def test_more_least_workers_than_workers_are_refused(digits: Config) -> None:
    with pytest.raises(UserError, match=r"cluster\.min_workers 3 is more than cluster\.num_workers 2"):
        changed(digits, cluster={"num_workers": 2, "min_workers": 3})
    with pytest.raises(UserError, match=r"train\.batch_size 2 is less than cluster\.num_workers 3"):
        changed(digits, cluster={"num_workers": 3}, train={"batch_size": 2})
