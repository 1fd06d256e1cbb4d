"""Downsampled ImageNet, odd images, and other people's tars and folders."""

import functools
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.prepare import prepare
from pipeline.shards import Record, pack
from pipeline.storage import join, read, write
from tests.conftest import tiny_config
from tests.pipeline.test_prepare import records_of


def config_of(folder: Path, source: Path | str, source_format: str, **data: Any) -> Config:
    described = {
        "name": "imagenet", "source": str(source), "source_format": source_format, "image_size": 8, "channels": 3,
        "levels": 256, "num_classes": 3, "resize": "box", "records_per_shard": 4,
    }  # fmt: skip
    return tiny_config(folder, data=described | data, model={"num_filters": 9, "head_filters": 18})


def jpeg(generator: np.random.Generator, mode: str = "RGB", **how: Any) -> bytes:
    colours = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    array = generator.integers(0, 256, (3, 4, colours), dtype=np.uint8)
    image = Image.fromarray(array[..., 0] if mode == "L" else array, mode).resize((40, 30), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, how.pop("format", "JPEG"), **how)
    return buffer.getvalue()


def expected(content: bytes, resample: Image.Resampling = Image.Resampling.BOX) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB").resize((8, 8), resample)).transpose(2, 0, 1)


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def odd_files(folder: Path) -> dict[str, bytes]:
    """ImageNet's known odd files: CMYK, a PNG called JPEG, broken metadata; and three that are no whole images."""
    generator = np.random.default_rng(0)
    whole = jpeg(generator)
    odd = {
        "cmyk.JPEG": jpeg(generator, "CMYK"),
        "png.JPEG": jpeg(generator, format="PNG"),
        "exif.JPEG": jpeg(generator, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff junk"),
        "empty.JPEG": b"",
        "text.JPEG": b"not an image at all",
        "torn.JPEG": whole[: len(whole) // 2],
        "whole.JPEG": whole,
    }
    for split in ("train", "val"):
        (folder / split / "cat").mkdir(parents=True)
    for name, content in odd.items():
        (folder / "train" / "cat" / name).write_bytes(content)
    (folder / "val" / "cat" / "whole.JPEG").write_bytes(whole)
    return odd


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_odd_files_are_read_right_and_unreadable_ones_listed(tmp_path: Path) -> None:
    odd = odd_files(tmp_path / "source")
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, max_unreadable=3)
    manifest = prepare(config)["train"]
    records = records_of(config, "train")
    assert records.keys() == {"cat/cmyk", "cat/png", "cat/exif", "cat/whole"}
    for key, (_, pixels) in records.items():
        assert np.array_equal(pixels, expected(odd[f"{key.removeprefix('cat/')}.JPEG"]))
    assert {image.name for image in manifest.unreadable} == {"cat/empty.JPEG", "cat/text.JPEG", "cat/torn.JPEG"}
    assert all("can't be decoded" in image.reason for image in manifest.unreadable)
    assert prepare(config)["train"] == manifest, "left as it is the second time"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_more_unreadable_images_than_allowed_end_prepare_without_a_manifest(tmp_path: Path) -> None:
    odd_files(tmp_path / "source")
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, max_unreadable=2)
    with pytest.raises(UserError, match=r"3 images can't be read, data.max_unreadable is 2"):
        prepare(config)
    assert not (tmp_path / "data" / "train" / "manifest.json").exists()
    for name in ("empty", "text", "torn"):
        (tmp_path / "source" / "train" / "cat" / f"{name}.JPEG").write_bytes(jpeg(np.random.default_rng(1)))
    assert prepare(config)["train"].num_images == 7, "repaired images are read when the same command is run again"


def batches(folder: Path, pickled: bool) -> dict[str, np.ndarray]:
    folder.mkdir()
    generator, found = np.random.default_rng(0), {}
    for name, count in (("train_data_batch_1", 5), ("train_data_batch_2", 4), ("val_data", 3)):
        content = {
            "data": generator.integers(0, 256, (count, 3 * 8 * 8), dtype=np.uint8),
            "labels": [1 + index % 3 for index in range(count)],
        }
        found[name] = content["data"]
        if pickled:
            (folder / name).write_bytes(pickle.dumps(content | {"mean": content["data"].mean(0)}, protocol=2))
        else:
            np.savez(folder / f"{name}.npz", **content)
    return found


@pytest.mark.parametrize("pickled", [False, True])
def test_downsampled_batches_keep_every_pixel(pickled: bool, tmp_path: Path) -> None:
    found = batches(tmp_path / "source", pickled)
    config = config_of(tmp_path, tmp_path / "source", "downsampled-imagenet", resize="none")
    prepare(config)
    records = records_of(config, "train") | records_of(config, "val")
    assert len(records) == 12
    for name, flat in found.items():
        for index, row in enumerate(flat):
            label, pixels = records[f"{name}-{index:06d}"]
            assert label == index % 3
            assert np.array_equal(pixels.ravel(), row)


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    batches(tmp_path / "source", pickled=True)
    (tmp_path / "source" / "train_data_batch_1").write_bytes(pickle.dumps({"data": Malicious(tmp_path / "ran")}))
    with pytest.raises(UserError, match="train_data_batch_1: not a pickle of plain arrays"):
        prepare(config_of(tmp_path, tmp_path / "source", "downsampled-imagenet", resize="none"))
    assert not (tmp_path / "ran").exists()


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    batches(tmp_path / "source", pickled=False)
    with pytest.raises(UserError, match=r"labels from 1 to 3, data.num_classes is 2"):
        prepare(config_of(tmp_path, tmp_path / "source", "downsampled-imagenet", resize="none", num_classes=2))


def lay(root: Path, names: list[str], count: int) -> None:
    """So many files of each name, an image each or a tar of one."""
    generator = np.random.default_rng(0)
    for name in names:
        for index in range(count):
            image = jpeg(generator)
            content = tar_of({f"{index}.jpg": image}) if name.endswith(".tar") else image
            write(str(root / name.format(index)), content)


@pytest.mark.parametrize("name", ["{split}/part-0", "imagenet1k-{split}-0000", "{split}/val_and_train-0"])
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_webdataset_tars_are_taken_over(where: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "source") if where == "folder" else request.getfixturevalue("s3")
    generator = np.random.default_rng(0)
    images = {f"{split}{index}": jpeg(generator, format="PNG") for split in ("train", "val") for index in range(3)}
    for split in ("train", "val"):
        records = [Record(f"{split}{index}", images[f"{split}{index}"], index) for index in range(3)]
        write(join(url, f"{name.format(split=split)}.tar"), pack(records))
    write(join(url, "test/part-0.tar"), b"not looked at, as it is of neither split")
    config = config_of(tmp_path, url, "webdataset")
    prepare(config)
    for split in ("train", "val"):
        records = records_of(config, split)
        assert len(records) == 3
        for index in range(3):
            label, pixels = records[f"{name.format(split=split)}/{split}{index}"]
            assert label == index
            assert np.array_equal(pixels, expected(images[f"{split}{index}"]))


def test_hidden_members_of_a_tar_are_passed_over(tmp_path: Path) -> None:
    """A Mac's tar lays attributes beside each file."""
    generator = np.random.default_rng(0)
    images = {f"./{index}.jpg": jpeg(generator) for index in range(4)}
    members = {f"./._{name[2:]}": b"attributes" for name in images} | images | {"./.DS_Store": b""}
    write(str(tmp_path / "source/part-0.tar"), tar_of(members))
    config = config_of(tmp_path, tmp_path / "source", "webdataset", holdout_fraction=0.25)
    prepare(config)
    assert len(records_of(config, "train")) == 3
    assert len(records_of(config, "val")) == 1


@pytest.mark.parametrize(
    ("source_format", "names"),
    [
        ("webdataset", ["train/{0}.tar", "test/{0}.tar"]),
        ("webdataset", ["imagenet1k-train-{0}.tar", "imagenet1k-validation-{0}.tar"]),
        ("class-folders", ["train/cat/{0}.jpg", "test/cat/{0}.jpg"]),
        ("class-folders", ["train/cat/{0}.jpg"]),
        ("folder", ["train/{0}.jpg", "test/{0}.jpg"]),
    ],
)
def test_a_split_without_the_other_is_not_mixed_with_what_lies_beside_it(
    source_format: str, names: list[str], tmp_path: Path
) -> None:
    lay(tmp_path / "source", names, 3)
    asked = functools.partial(config_of, tmp_path, tmp_path / "source", source_format, num_classes=1)
    with pytest.raises(UserError, match=r"train is there, val is not; name the other split .* by --data.val-split"):
        prepare(asked())
    other = "validation" if "validation" in names[-1] else "test"
    if len(names) == 2:
        counts = {split: manifest.num_images for split, manifest in prepare(asked(val_split=other)).items()}
        assert counts == {"train": 3, other: 3}


@pytest.mark.parametrize(
    ("source_format", "names"),
    [
        ("webdataset", ["train/{0}.tar"]),
        ("webdataset", ["trains-{0}.tar", "cars-{0}.tar"]),
        ("class-folders", ["train/{0}.jpg", "tulip/{0}.jpg"]),
        ("folder", ["train/{0}.jpg"]),
        ("folder", ["a/train/{0}.jpg", "b/{0}.jpg"]),
    ],
)
def test_what_is_only_called_as_a_split_or_is_all_there_is_has_a_share_held_out(
    source_format: str, names: list[str], tmp_path: Path
) -> None:
    lay(tmp_path / "source", names, 4)
    classes = len(names) if source_format == "class-folders" else 1
    config = config_of(tmp_path, tmp_path / "source", source_format, num_classes=classes, holdout_fraction=0.25)
    counts = {split: manifest.num_images for split, manifest in prepare(config).items()}
    assert counts == {"train": 3 * len(names), "val": len(names)}


def test_a_folder_without_labels_is_one_class(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(6):
        write(str(tmp_path / "source" / f"{index % 2}" / f"{index}.jpg"), jpeg(generator))
    config = config_of(tmp_path, tmp_path / "source", "folder", num_classes=1, holdout_fraction=0.34)
    manifests = prepare(config)
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 4, "val": 2}
    assert manifests["train"].classes == ("image",)


def test_names_that_differ_in_their_ending_alone_are_two_records(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("0.png", "0.bmp", "1.png", "2.png"):
        write(str(tmp_path / "source" / "cat" / name), jpeg(generator, format="PNG"))
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, holdout_fraction=0.26)
    prepare(config)
    assert (records_of(config, "train") | records_of(config, "val")).keys() == {
        "cat/0_png", "cat/0_bmp", "cat/1", "cat/2",
    }  # fmt: skip


def test_lanczos_is_pillows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    contents = [jpeg(generator) for _ in range(2)]
    for split, content in zip(("train", "val"), contents, strict=True):
        write(str(tmp_path / "source" / split / "cat" / "0.jpg"), content)
    config = config_of(tmp_path, tmp_path / "source", "class-folders", num_classes=1, resize="lanczos")
    assert prepare(config)["train"].version == "imagenet-8-lanczos"
    _, pixels = records_of(config, "train")["cat/0"]
    assert np.array_equal(pixels, expected(contents[0], Image.Resampling.LANCZOS))


def test_array_sources_are_resized_too(tmp_path: Path) -> None:
    found = batches(tmp_path / "source", pickled=False)
    config = config_of(tmp_path, tmp_path / "source", "downsampled-imagenet", image_size=4)
    prepare(config)
    _, pixels = records_of(config, "val")["val_data-000000"]
    whole = Image.fromarray(found["val_data"][0].reshape(3, 8, 8).transpose(1, 2, 0))
    assert np.array_equal(pixels, np.asarray(whole.resize((4, 4), Image.Resampling.BOX)).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("source_format", "source", "message"),
    [
        ("npz", "s3://bucket/faces.npz", "npz is read from folders only"),
        ("ilsvrc2012", "file", "a file; ilsvrc2012 wants a folder"),
        ("webdataset", "empty", "no .tar below it"),
        ("folder", "empty", "no images in it"),
        ("downsampled-imagenet", "empty", "train_data_batch_1 is missing"),
    ],
)
def test_sources_that_are_something_else_are_refused(
    source_format: str, source: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    where = source if "://" in source else tmp_path / source
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, where, source_format))


def test_a_byte_range_is_read_from_folders_and_object_storage(tmp_path: Path, s3: str) -> None:
    for url in (str(tmp_path / "file"), f"{s3}/file"):
        write(url, bytes(range(100)))
        assert read(url, 10, 5) == bytes(range(10, 15))
        assert read(url, 90) == bytes(range(90, 100))
        assert read(url, 0, 3) == bytes(range(3))
