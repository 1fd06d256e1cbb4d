import itertools
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from models.autoregressive import AutoregressiveModel
from pipeline.breakdown import Breakdown
from pipeline.config import Config
from pipeline.evaluate import evaluate
from pipeline.manifest import Manifest, load_manifest, split_url
from pipeline.prepare import prepare
from pipeline.shards import decode_png, fetch
from tests.conftest import LocalWorker, tiny_config

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def colours(tmp_path: Path) -> Config:
    """Seventy random images of 3x4x4 of three classes, a tenth of them held out."""
    source = tmp_path / "images.npz"
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 5, (70, 4, 4, 3)).astype(np.uint8)
    np.savez(source, images=images, labels=np.arange(70) % 3)
    config = tiny_config(
        tmp_path,
        data={
            "name": "noise", "source": str(source), "source_format": "npz", "channels": 3, "levels": 256,
            "image_size": 4, "num_classes": 3, "records_per_shard": 3,
        },
        model={"num_filters": 9, "head_filters": 9},
    )  # fmt: skip
    prepare(config)
    return config


def model_of(config: Config) -> AutoregressiveModel:
    torch.manual_seed(1)
    model = config.build_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, AutoregressiveModel)
    return model.eval()


def by_brute_force(config: Config, manifest: Manifest, model: AutoregressiveModel) -> tuple[np.ndarray, list[int]]:
    """The nats of every sub-pixel, image by image, from the logits of each and Python's log."""
    nats, labels = [], []
    for shard in manifest.shards:
        for record in fetch(split_url(config, manifest.split), shard):
            image = torch.from_numpy(decode_png(record, manifest.shape).copy())[None]
            with torch.no_grad():
                logits = model(image, torch.tensor([record.label]))[0].double()
            one = np.zeros(manifest.shape)
            for place in itertools.product(*map(range, manifest.shape)):
                row = logits[place]
                one[place] = math.log(math.fsum(row.exp().tolist())) - row[int(image[0][place])].item()
            nats.append(one)
            labels.append(record.label)
    return np.stack(nats), labels


@pytest.mark.parametrize("batch_size", [1, 5])
def test_parts_equal_a_brute_force_count_and_add_up(colours: Config, batch_size: int) -> None:
    manifest, model = load_manifest(colours, "val"), model_of(colours)
    parts = Breakdown.empty(manifest, torch.device("cpu"))
    measured = evaluate(colours, manifest, model, LocalWorker(""), batch_size, parts)
    nats, labels = by_brute_force(colours, manifest, model)
    assert parts.images == manifest.num_images == len(nats) > batch_size
    assert parts.nats_by_colour.tolist() == pytest.approx(nats.sum((0, 2, 3)).tolist(), rel=1e-5)
    np.testing.assert_allclose(parts.nats_by_position.numpy(), nats.sum((0, 1)), rtol=1e-5)
    for label in range(3):
        chosen = nats[np.array(labels) == label]
        assert parts.images_by_class[label] == len(chosen)
        assert parts.nats_by_class[label].item() == pytest.approx(chosen.sum(), rel=1e-5)
    for sums in (parts.nats_by_colour, parts.nats_by_class, parts.nats_by_position):
        assert sums.sum().item() == pytest.approx(measured.total, rel=1e-12)
    bits = [one.sum() / math.log(2) / 48 for one in nats]
    low, high = parts.interval() or (0, 0)
    assert (low + high) / 2 == pytest.approx(statistics.fmean(bits), rel=1e-5)
    assert (high - low) / 2 == pytest.approx(1.959964 * statistics.stdev(bits) / len(bits) ** 0.5, rel=1e-4)


def test_the_total_is_the_same_to_the_bit_with_and_without_parts(digits: Config) -> None:
    manifest, model = load_manifest(digits, "val"), model_of(digits)
    parts = Breakdown.empty(manifest, torch.device("cpu"))
    bare = evaluate(digits, manifest, model, LocalWorker(""), 50)
    assert evaluate(digits, manifest, model, LocalWorker(""), 50, parts) == bare
    assert [part.name for part in parts.colours()] == ["grey"]
    assert parts.colours()[0].bits_per_dim == pytest.approx(bare.metrics("val")["val/bits_per_dim"], rel=1e-12)


def test_parts_as_bits() -> None:
    """An image of 1 bit a red sub-pixel, 2 a green and 3 a blue one, and one of another class with twice these."""
    parts = Breakdown.empty(manifest_of(NAMES), torch.device("cpu"))
    bits = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None].expand(1, 3, 2, 2)
    nats = torch.cat([bits, 2 * bits]).double() * math.log(2)
    assert parts.add(nats, torch.tensor([0, 2])).tolist() == pytest.approx([24 * math.log(2), 48 * math.log(2)])
    assert [(part.name, part.bits_per_dim) for part in parts.colours()] == [
        ("red", pytest.approx(1.5)), ("green", pytest.approx(3.0)), ("blue", pytest.approx(4.5)),
    ]  # fmt: skip
    told = [(part.name, part.images, part.bits_per_dim) for part in parts.classes(NAMES)]
    assert told == [("cat", 1, pytest.approx(2.0)), ("dog", 0, None), ("owl", 1, pytest.approx(4.0))]
    np.testing.assert_allclose(parts.positions(), np.full((2, 2), 3.0))
    assert parts.interval() == pytest.approx((3.0 - 1.959964, 3.0 + 1.959964))


def test_one_image_has_no_interval() -> None:
    parts = Breakdown.empty(manifest_of(NAMES), torch.device("cpu"))
    parts.add(torch.ones(1, 3, 2, 2), torch.tensor([1]))
    assert parts.interval() is None


def manifest_of(
    classes: tuple[str, ...], name: str = "toy", version: str = "toy-2-none", shape: tuple[int, int, int] = (3, 2, 2)
) -> Manifest:
    return Manifest.model_validate(
        {
            "name": name, "version": version, "split": "test", "shape": shape, "levels": 256, "resize": "none",
            "classes": classes, "prepare_seed": 0, "shards": [],
        }
    )  # fmt: skip
