import io
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import prepare as prepare_module
from pipeline import storage
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest, split_url
from pipeline.prepare import prepare
from pipeline.shards import decode_png, describe, fetch
from tests.conftest import tiny_config


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
    writes = itertools.count()

    def dying(url: str, content: bytes) -> None:
        if next(writes) == fails_at:
            raise KeyboardInterrupt
        storage.write(url, content)

    monkeypatch.setattr(prepare_module, "write", dying)
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


def cifar10_batches(folder: Path, records: int = 7) -> np.ndarray:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    everything = []
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        content = generator.integers(0, 256, (records, 3073), dtype=np.uint8)
        content[:, 0] %= 10
        (folder / name).write_bytes(content.tobytes())
        everything.append(content)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n")
    return np.stack(everything)


def cifar10_config(folder: Path, source: Path) -> Config:
    data = {
        "name": "cifar10", "source": str(source), "source_format": "cifar10-binary", "image_size": 32, "channels": 3,
        "levels": 256, "val_split": "test", "records_per_shard": 10,
    }  # fmt: skip
    model = {"num_filters": 9, "head_filters": 18}
    return tiny_config(folder, data=data, model=model)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_binary_folder_and_tar_keep_every_pixel(packed: bool, tmp_path: Path) -> None:
    source = tmp_path / "cifar-10-batches-bin"
    content = cifar10_batches(source)
    if packed:
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
            tar.add(source, "cifar-10-batches-bin")
    config = cifar10_config(tmp_path, tmp_path / "cifar-10-binary.tar.gz" if packed else source)
    prepare(config)
    assert load_manifest(config, "test").classes[3] == "class3"
    test = records_of(config, "test")
    assert len(test) == 7
    for index in range(7):
        label, pixels = test[f"test_batch-{index:05d}"]
        assert label == content[5, index, 0]
        assert np.array_equal(pixels.ravel(), content[5, index, 1:])
    assert len(records_of(config, "train")) == 35


def test_cifar10_of_the_shared_data_is_prepared_whole(shared_data: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, shared_data / "cifar10" / "to_binary.py", tmp_path / "cifar"], check=True)
    config = cifar10_config(tmp_path, tmp_path / "cifar")
    config = config.model_copy(update={"data": config.data.model_copy(update={"records_per_shard": 5000})})
    manifests = prepare(config)
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 49_928, "test": 9_980}
    assert manifests["test"].classes[8] == "ship"
    labels = np.bincount([label for label, _ in records_of(config, "test").values()])
    assert labels.tolist() == [1000, 1000, 1000, 1000, 1000, 1000, 1000, 999, 981, 1000]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "test_batch.bin").unlink(), "test_batch.bin is missing; give cifar-10-binary.tar.gz"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b"x" * 3000), "has 3000 bytes, not a multiple"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b"\x0b" * 3073), "record 0 has label 11, not 0 to 9"),
    ],
)
def test_spoilt_cifar10_names_the_file(spoil, message: str, tmp_path: Path) -> None:
    source = tmp_path / "cifar"
    cifar10_batches(source)
    spoil(source)
    with pytest.raises(UserError, match=message):
        prepare(cifar10_config(tmp_path, source))


def class_folders(root: Path, size: int, mode: str = "RGB") -> None:
    generator = np.random.default_rng(1)
    for split, name, count in (("train", "cat", 5), ("train", "dog", 4), ("val", "cat", 2), ("val", "dog", 2)):
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / split / name / f"{index}.png")


def folder_config(folder: Path, **changes: object) -> Config:
    data = {
        "name": "pets", "source": str(folder / "images"), "source_format": "class-folders", "image_size": 8,
        "channels": 3, "levels": 256, "num_classes": 2,
    }  # fmt: skip
    return tiny_config(folder, data=data | changes, model={"num_filters": 9, "head_filters": 18})


def test_class_folders_with_splits_are_resized_by_box(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 20)
    config = folder_config(tmp_path, resize="box")
    manifests = prepare(config)
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 9, "val": 4}
    assert manifests["val"].classes == ("cat", "dog")
    assert manifests["val"].version == "pets-8-box"
    label, pixels = records_of(config, "val")["dog/1"]
    expected = Image.open(tmp_path / "images/val/dog/1.png").resize((8, 8), Image.Resampling.BOX)
    assert label == 1
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))


def test_class_folders_without_splits_are_held_out_by_share(tmp_path: Path) -> None:
    class_folders(tmp_path / "all", 8, mode="L")
    (tmp_path / "images").mkdir()
    (tmp_path / "all/train/cat").rename(tmp_path / "images/cat")
    (tmp_path / "all/train/dog").rename(tmp_path / "images/dog")
    manifests = prepare(folder_config(tmp_path, channels=1, holdout_fraction=0.25))
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 7, "val": 2}


def test_image_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 20)
    with pytest.raises(
        UserError, match=r"\d\.png: image of height, width and channels \(20, 20, 3\), data.image_size is 8"
    ):
        prepare(folder_config(tmp_path))


def test_undecodable_image_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 8)
    (tmp_path / "images/val/cat/0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val/cat/0\.png: can't be decoded as an image"):
        prepare(folder_config(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "data.source is empty: name the class-folders folder"),
        ({"source": "/nowhere"}, "data.source /nowhere: no such file or folder"),
        ({"num_classes": 3}, "data.num_classes is 3, the source has 2 classes: set --data.num-classes 2"),
        ({"levels": 17}, r"level \d+ in an image of data.levels 17; raise data.levels"),
    ],
)
def test_sources_that_do_not_fit_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 8)
    with pytest.raises(UserError, match=message):
        prepare(folder_config(tmp_path, **changes))


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
