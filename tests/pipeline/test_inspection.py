import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.inspection import inspect
from pipeline.manifest import Manifest, load_manifest
from pipeline.shards import Record, decode_png, describe, encode_png, fetch, pack
from pipeline.storage import join, read, write
from tests.conftest import tiny_config
from tests.pipeline.test_prepare import records_of


def test_findings_are_those_of_the_images(digits: Config) -> None:
    lines = "\n".join(inspect(digits))
    for split in ("train", "val"):
        found = records_of(digits, split)
        pixels = np.stack([image for _, image in found.values()])
        counts = np.bincount([label for label, _ in found.values()])
        assert f"{split}: {len(found):,} of {len(found):,} images sound, 1x8x8, 17 levels" in lines
        assert f"{split}: 10 of 10 classes, {counts.min()} to {counts.max()} a class" in lines
        assert f"{split}: mean {pixels.mean():.2f}, deviation {pixels.std():.2f} levels" in lines
        assert f"{split}: 0 images that are not alone with their pixels\n" in lines
    assert len(np.unique(load_digits().data, axis=0)) == 1797, "no two of the real digits are the same"
    assert "both: 0 images of val have the pixels of one of train" in lines


def test_contact_sheet_shows_the_first_images(digits: Config) -> None:
    inspect(digits)
    sheet = np.asarray(Image.open(io.BytesIO(read(f"{digits.data.url}/val/contact-sheet.png"))))
    manifest = load_manifest(digits, "val")
    first = decode_png(fetch(f"{digits.data.url}/val", manifest.shards[0])[0], manifest.shape)[0]
    shown = sheet[1:41, 1:41]
    assert np.array_equal(shown[::5, ::5], np.round(first * (255 / 16)).astype(np.uint8))


def with_records(config: Config, split: str, records: list[Record]) -> None:
    """The split with one shard of these records and a manifest that says so."""
    url, content = f"{config.data.url}/{split}", pack(records)
    write(join(url, "shard-000000.tar"), content)
    described = load_manifest(config, split).model_dump()
    described["shards"] = [describe("shard-000000.tar", content, len(records))]
    write(join(url, "manifest.json"), Manifest.model_validate(described).to_json().encode())


def image(value: int) -> bytes:
    return encode_png(np.full((8, 8, 1), value, np.uint8))


def test_repeated_pixels_are_named_within_and_across_splits(digits: Config) -> None:
    with_records(digits, "train", [Record("a", image(3), 0), Record("b", image(3), 1), Record("c", image(4), 1)])
    with_records(digits, "val", [Record("d", image(4), 0), Record("e", image(5), 0)])
    lines = "\n".join(inspect(digits))
    assert "train: 2 images that are not alone with their pixels: a = b" in lines
    assert "both: 1 images of val have the pixels of one of train: c = d" in lines
    assert "val: 1 of 10 classes, 2 to 2 a class" in lines


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (Record("high", image(17), 0), "record high has label 0 and a level of 17, the manifest says 10 classes"),
        (Record("label", image(1), 10), "record label has label 10"),
        (Record("torn", image(1)[:40], 0), "record torn: its png can't be decoded"),
        (Record("good", image(2), 1), "train: the record key good is there 2 times"),
    ],
)
def test_records_that_break_the_manifest_are_named(record: Record, fault: str, digits: Config) -> None:
    with_records(digits, "train", [Record("good", image(1), 0), Record("other", image(3), 0), record])
    with pytest.raises(UserError, match=fault):
        inspect(digits)


def test_every_bad_shard_is_told_after_all_were_read(
    digits: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = sorted((tmp_path / "data" / "train").glob("*.tar"))
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"2 faults .*000000.tar: the shard is missing.*000002.tar: truncated"):
        inspect(digits)
    assert "val: 179 of 179 images sound" in capsys.readouterr().out


def test_data_set_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no manifest"):
        inspect(tiny_config(tmp_path))
