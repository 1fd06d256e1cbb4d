import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import prepare as prepare_module
from pipeline import shards, storage
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest, split_url
from pipeline.prepare import prepare
from pipeline.shards import Record, decode_png, describe, fetch
from pipeline.sources.source import SourceImage
from tests.conftest import dying_at, tiny_config


def records_of(config: Config, split: str) -> dict[str, tuple[int, np.ndarray]]:
    manifest = load_manifest(config, split)
    records = [record for shard in manifest.shards for record in fetch(split_url(config, split), shard)]
    return {record.key: (record.label, decode_png(record, manifest.shape)) for record in records}


def test_digits_are_prepared_losslessly_every_image_once(digits: Config) -> None:
    real = load_digits()
    train, val = records_of(digits, "train"), records_of(digits, "val")
    assert len(train) + len(val) == 1797
    assert not train.keys() & val.keys()
    for key, (label, pixels) in (train | val).items():
        index = int(key.removeprefix("digit"))
        assert label == real.target[index]
        assert np.array_equal(pixels[0], real.images[index])
    counts = np.bincount([label for label, _ in val.values()], minlength=10)
    assert counts.min() >= 17, "the held-out share is taken from every class"


def test_shards_are_plain_webdataset_tars(digits: Config) -> None:
    manifest = load_manifest(digits, "val")
    paths = [f"{digits.data.url}/val/{shard.file}" for shard in manifest.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("l8"))
    assert len(samples) == manifest.num_images
    assert samples[0]["png"].shape == (8, 8)
    assert samples[0]["cls"] in range(10)


def test_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        manifests = prepare(tiny_config(tmp_path / name))
        digests.append({split: manifest.digest for split, manifest in manifests.items()})
    assert digests[0] == digests[1]


def test_finished_data_set_is_left_alone(digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(digits.data.url).rglob("*")}
    prepare(digits)
    assert {path: path.stat().st_mtime_ns for path in Path(digits.data.url).rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().out


def test_another_recipe_is_refused_with_the_key(digits: Config) -> None:
    other = digits.model_copy(update={"data": digits.data.model_copy(update={"records_per_shard": 100})})
    with pytest.raises(UserError, match="already holds a data set with records_per_shard 150, not 100"):
        prepare(other)


@pytest.mark.parametrize("root", ["folder", "s3"])
@pytest.mark.parametrize("fails_at", [0, 3, 6, 11])
def test_interrupted_prepare_goes_on_and_ends_as_if_undisturbed(
    root: str, fails_at: int, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path) if root == "folder" else request.getfixturevalue("s3")
    config, undisturbed = tiny_config(folder), tiny_config(tmp_path / "undisturbed")
    monkeypatch.setattr(prepare_module, "write", dying_at(fails_at, storage.write))
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    with pytest.raises(UserError, match=r"no manifest; run `python -m jobs\.prepare digits`"):
        load_manifest(config, "train")
    packed: list[int] = []
    real_pack = prepare_module.pack
    monkeypatch.setattr(prepare_module, "pack", lambda records: packed.append(len(records)) or real_pack(records))
    monkeypatch.setattr(prepare_module, "write", storage.write)
    prepare(config)
    assert len(packed) == 11 + 2 - fails_at // 2, "whole shards with their receipts are not made again"
    prepare(undisturbed)
    for split in ("train", "val"):
        assert load_manifest(config, split) == load_manifest(undisturbed, split)
    assert not [name for name in storage.names_below(config.data.url) if "receipt" in name]


def test_receipts_that_a_kill_left_beside_a_manifest_go_with_the_next_prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "delete", dying_at(3, storage.delete))
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    left = [name for name in storage.names_below(f"{config.data.url}/train") if "receipt" in name]
    assert len(left) == 11 - 3
    prepare(config)
    assert f"nothing to do: {config.data.url}/train already holds 1,618 images" in capsys.readouterr().out
    assert not [name for name in storage.names_below(config.data.url) if "receipt" in name]


@pytest.mark.parametrize(("levels", "version"), [(2, "digits-8-none-2levels"), (5, "digits-8-none-5levels")])
def test_fewer_levels_than_the_source_has_quantise_and_are_named_by_the_version(
    levels: int, version: str, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, data={"levels": levels})
    assert {manifest.version for manifest in prepare(config).values()} == {version}
    real = load_digits().images.astype(int)
    found = records_of(config, "train") | records_of(config, "val")
    expected = {f"digit{index:04d}": image * levels // 17 for index, image in enumerate(real)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(pixels[0], expected[key]) for key, (_, pixels) in found.items())
    assert {level for image in expected.values() for level in image.ravel()} == set(range(levels))
    if levels == 2:
        assert np.array_equal(found["digit0000"][1][0], real[0] >= 9), "17 levels are cut in the middle"


def test_as_many_levels_as_the_source_has_or_more_leave_it_as_it_is(digits: Config, tmp_path: Path) -> None:
    more = tiny_config(tmp_path / "more", data={"levels": 256})
    assert {manifest.version for manifest in prepare(more).values()} == {"digits-8-none"}
    assert load_manifest(more, "val").shards == load_manifest(digits, "val").shards


def test_every_level_of_a_byte_is_quantised_without_overflow() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for levels in (2, 3, 200, 255, 256):
        data = {"image_size": 16, "levels": levels}
        record = prepare_module._record(
            tiny_config("unused", data=data), 256, "key", SourceImage("every", 0, lambda: every)
        )
        pixels = decode_png(Record("every", record.png, 0), (1, 16, 16))
        assert pixels.ravel().tolist() == [value * levels // 256 for value in range(256)]


def test_one_name_for_both_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.train_split and data\.val_split are both 'all': give the two splits two"
    ):
        prepare(tiny_config(tmp_path, data={"train_split": "all", "val_split": "all"}))
    assert not (tmp_path / "data").exists()


def test_manifests_name_held_out_classes_and_otherwise_read_as_they_always_did(tmp_path: Path) -> None:
    images = tiny_config(tmp_path / "images", data={"holdout_fraction": 0.5})
    classes = tiny_config(tmp_path / "classes", data={"holdout_fraction": 0.5, "holdout": "classes"})
    assert "holdout" not in prepare(images)["val"].to_json()
    manifests = prepare(classes)
    assert manifests["val"].holdout == load_manifest(classes, "val").holdout == "classes"
    assert prepare(classes) == manifests, "a finished data set is known again"
    elsewhere = classes.model_copy(update={"data": classes.data.model_copy(update={"url": images.data.url})})
    with pytest.raises(UserError, match="already holds a data set with holdout 'images', not 'classes'"):
        prepare(elsewhere)


def spoil_manifest(config: Config, **changes: object) -> None:
    path = Path(config.data.url, "train", "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_manifest_that_does_not_fit_names_key_and_both_values(digits: Config) -> None:
    spoil_manifest(digits, levels=256)
    with pytest.raises(UserError, match=r"data\.levels is 17 in the configuration and 256 in the manifest"):
        load_manifest(digits, "train")
    spoil_manifest(digits, shards="none")
    with pytest.raises(UserError, match=r"train/manifest\.json: not a manifest \(shards"):
        load_manifest(digits, "train")


def shard_with(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False) as writer:
        writer.write({"__key__": "a", "png": png, "cls": b"0"})
    return buffer.getvalue()


def test_spoilt_shards_are_named(digits: Config) -> None:
    folder, shard = split_url(digits, "train"), load_manifest(digits, "train").shards[0]
    path = Path(folder, shard.file)
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(UserError, match=rf"{shard.file}: truncated or altered, {len(content) - 512} bytes where"):
        fetch(folder, shard)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match=rf"{shard.file}: wrong sha256"):
        fetch(folder, shard)
    path.unlink()
    with pytest.raises(UserError, match=rf"{shard.file}: the shard is missing"):
        fetch(folder, shard)


def test_record_of_the_wrong_size_or_content_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (9, 8)).save(buffer, "PNG")
    for png, message in (
        (buffer.getvalue(), r"record a: image of shape \(1, 8, 9\)"),
        (b"x", "record a: its png can't"),
    ):
        content = shard_with(png)
        (tmp_path / "s.tar").write_bytes(content)
        (record,) = fetch(str(tmp_path), describe("s.tar", content, 1))
        with pytest.raises(UserError, match=message):
            decode_png(record, (1, 8, 8))


def test_prepare_on_a_full_disk_says_so_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    config = tiny_config(small_disk)
    with pytest.raises(UserError, match=r"shard-00000\d\.tar: the disk is full; free space.*run the same command"):
        prepare(config)
    assert not list(small_disk.rglob("manifest.json"))
    assert not list(small_disk.rglob(".shard*"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    prepare(config)
    assert len(records_of(config, "train")) == 1618


def pairs(*names: str) -> dict[str, bytes]:
    return {name: b"7" if name.endswith("cls") else b"bytes of an image" * 40 for name in names}


@pytest.mark.parametrize(
    "entries",
    [
        pairs("a.cls", "a.png", "b/c.cls", "b/c.png"),
        pairs("a.png", "a.cls", "b.png", "b.cls"),
        pairs("a.cls", "a.json", "a.png"),
        pairs(f"{'long/' * 30}a.cls", f"{'long/' * 30}a.png", "b.cls", "b.png"),
        pairs(f"{'n' * 96}.cls", f"{'n' * 96}.png"),
        pairs("umlaut-\u00e4.cls", "umlaut-\u00e4.png"),
        pairs("dot.ted.cls", "dot.ted.png", "b.cls", "b.png"),
        {},
    ],
)
def test_shards_of_any_writer_are_read_as_webdataset_reads_them(entries: dict[str, bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    (tmp_path / "s.tar").write_bytes(content)
    try:
        expected = shards._webdataset_records(content, "s.tar")
    except KeyError:
        with pytest.raises(UserError, match="not a shard of png and cls entries"):
            fetch(str(tmp_path), describe("s.tar", content, 1))
        return
    assert fetch(str(tmp_path), describe("s.tar", content, len(expected))) == expected


def test_a_shard_takes_no_more_than_a_tar_must(digits: Config) -> None:
    manifest = load_manifest(digits, "val")
    (record, *_) = fetch(split_url(digits, "val"), manifest.shards[0])
    entry = 512 + -(-len(record.png) // 512) * 512 + 512 + 512
    end = 10_240
    assert manifest.shards[0].bytes <= manifest.shards[0].records * entry + end
