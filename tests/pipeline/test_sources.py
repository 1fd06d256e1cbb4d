import errno
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare
from pipeline.sources.opening import open_source
from pipeline.sources.pixels import pixels_of
from tests.conftest import tiny_config
from tests.pipeline.test_prepare import records_of


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


@pytest.mark.cluster
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


def test_a_relative_source_is_read_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's tasks run where the cluster was started."""
    class_folders(tmp_path / "images", 8)
    monkeypatch.chdir(tmp_path)
    source = open_source(folder_config(tmp_path, source="images").data)
    monkeypatch.chdir("/")
    assert [image.load().shape for images in source.splits.values() for image in images] == 13 * [(8, 8, 3)]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    class_folders(tmp_path / "all", 8)
    (tmp_path / "all/train").rename(tmp_path / "images")
    before = names_of(folder_config(tmp_path, holdout_fraction=0.3))
    (tmp_path / "images/cat/._0.png").write_bytes(b"a Mac's attributes")
    for hidden in (tmp_path / "images/.cache", tmp_path / "images/cat/.ipynb_checkpoints"):
        hidden.mkdir()
        shutil.copy(tmp_path / "images/cat/0.png", hidden / "copy.png")
    assert names_of(folder_config(tmp_path, holdout_fraction=0.3)) == before
    flat = names_of(folder_config(tmp_path, source_format="folder", holdout_fraction=0.3))
    assert sum(map(len, flat.values())) == 9


@pytest.mark.parametrize("source_format", ["class-folders", "folder"])
def test_links_are_followed_wherever_they_lead(source_format: str, tmp_path: Path) -> None:
    """A split or a class chosen by links, and a link that would lead round for ever."""
    class_folders(tmp_path / "all", 8)
    config = folder_config(tmp_path, source_format=source_format)
    (tmp_path / "images").symlink_to(tmp_path / "all")
    expected = names_of(config)
    (tmp_path / "images").unlink()
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "images/train").symlink_to(tmp_path / "all/train")
    for name in ("cat", "dog"):
        (tmp_path / "images/val" / name).symlink_to(tmp_path / "all/val" / name)
    (tmp_path / "all/train/cat/round").symlink_to(tmp_path / "all/train")
    (tmp_path / "all/train/cat/a folder.png").mkdir()
    assert names_of(config) == expected
    assert sum(map(len, expected.values())) == 13


@pytest.mark.parametrize("name", ["images/train", "images/train/dog"])
def test_a_folder_that_can_not_be_read_is_named_rather_than_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "images", 8)
    scandir = os.scandir

    def refusing(path: str) -> Any:
        """As for a person without the right; tests may run as root, whom nothing is forbidden."""
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    told = rf"data\.source .*/images: .*/{name} can't be read \(Permission denied\); permit it"
    with pytest.raises(UserError, match=told):
        prepare(folder_config(tmp_path))


def names_of(config: Config) -> dict[str, list[str]]:
    return {split: [image.name for image in images] for split, images in open_source(config.data).splits.items()}


def test_class_folders_without_images_are_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 8)
    (tmp_path / "images/train/__MACOSX").mkdir()
    with pytest.raises(UserError, match="no images in the class folders __MACOSX; fill or remove them"):
        prepare(folder_config(tmp_path))


@pytest.mark.parametrize(
    ("place", "remedy"),
    [("", "sort its images into a folder for each class, or set --data.source-format"), ("cat", "known end")],
)
def test_a_split_without_images_in_class_folders_is_told_what_to_do(place: str, remedy: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 8)
    shutil.rmtree(tmp_path / "images/val")
    (tmp_path / "images/val" / place).mkdir(parents=True)
    name = "image.png" if place == "" else "image.gnp"
    Image.new("RGB", (8, 8)).save(tmp_path / "images/val" / place / name, "PNG")
    with pytest.raises(UserError, match=rf"images/val: no images in its class folders; {remedy}"):
        prepare(folder_config(tmp_path))


@pytest.mark.parametrize(
    ("ending", "dtype"), [("png", np.uint16), ("tiff", np.uint16), ("tiff", np.int32), ("tiff", np.float32)]
)
def test_images_of_more_than_8_bits_are_refused_rather_than_cut_off(ending: str, dtype: type, tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 8)
    Image.fromarray(np.full((8, 8), 30_000, dtype)).save(tmp_path / f"images/train/dog/deep.{ending}")
    with pytest.raises(UserError, match=rf"deep\.{ending}: more than 8 bits a colour .*; scale it to 0\.\.255"):
        prepare(folder_config(tmp_path))


def test_class_folders_without_splits_are_held_out_by_share(tmp_path: Path) -> None:
    class_folders(tmp_path / "all", 8, mode="L")
    (tmp_path / "all/train").rename(tmp_path / "images")
    manifests = prepare(folder_config(tmp_path, channels=1, holdout_fraction=0.25))
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 7, "val": 2}


def test_class_folders_without_splits_can_hold_out_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "all", 8)
    (tmp_path / "all/train").rename(tmp_path / "images")
    source = open_source(folder_config(tmp_path, holdout="classes", holdout_fraction=0.5).data)
    labels = {split: {image.label for image in images} for split, images in source.splits.items()}
    assert source.classes == ("cat", "dog")
    assert sorted(map(sorted, labels.values())) == [[0], [1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": "classes", "holdout_fraction": 0.04}, "fraction 0.04 with data.holdout classes holds out 0 of 17"),
        ({"holdout": "classes", "holdout_fraction": 0.96}, "holds out 1797 of 1797 images, of 10 classes: both splits"),
        (
            {"holdout_fraction": 0.001},
            "data.holdout_fraction 0.001 with data.holdout images holds out 0 of 1797 images",
        ),
    ],
)
def test_a_share_that_leaves_a_split_empty_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(tiny_config("unused", data=changes).data)


def test_held_out_classes_are_seeded_and_whole() -> None:
    found = []
    for seed in (0, 0, 1, 2):
        changes = {"holdout": "classes", "holdout_fraction": 0.3, "prepare_seed": seed}
        splits = open_source(tiny_config("unused", data=changes).data).splits
        train, val = ({image.label for image in splits[split]} for split in ("train", "val"))
        assert train | val == set(range(10))
        assert not train & val
        assert len(val) == 3
        assert len(splits["train"]) + len(splits["val"]) == 1797
        found.append(frozenset(val))
    assert found[0] == found[1]
    assert len(set(found)) > 1


@pytest.mark.parametrize("size", [(20, 20), (21, 8), (9, 30), (5, 4)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_center_crop_box_is_pillows_crop_and_box_of_the_central_square(size: tuple[int, int], mode: str) -> None:
    generator = np.random.default_rng(2)
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    corners = {(20, 20): (0, 0, 20, 20), (21, 8): (6, 0, 14, 8), (9, 30): (0, 10, 9, 19), (5, 4): (0, 0, 4, 4)}
    expected = np.asarray(image.crop(corners[size]).resize((8, 8), Image.Resampling.BOX))
    channels = {"L": 1, "RGB": 3}[mode]
    data = folder_config(Path("unused"), channels=channels, resize="center-crop-box").data
    assert np.array_equal(pixels_of(image, data), expected.reshape(8, 8, channels))


def test_class_folders_are_cropped_to_the_central_square(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 20)
    wide = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 31, 3), dtype=np.uint8))
    wide.save(tmp_path / "images/val/dog/1.png")
    config = folder_config(tmp_path, resize="center-crop-box")
    assert prepare(config)["val"].version == "pets-8-center-crop-box"
    expected = wide.crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling.BOX)
    assert np.array_equal(records_of(config, "val")["dog/1"][1], np.asarray(expected).transpose(2, 0, 1))


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
        ({"holdout": "classes"}, "data.holdout classes: data.source .*/images has splits of its own"),
    ],
)
def test_sources_that_do_not_fit_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 8)
    with pytest.raises(UserError, match=message):
        prepare(folder_config(tmp_path, **changes))
