"""ILSVRC2012 as it is handed out, in its tars and unpacked."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare
from pipeline.sources import ilsvrc2012
from pipeline.storage import write
from tests.pipeline.test_imagenet_sources import config_of, expected, jpeg, tar_of
from tests.pipeline.test_prepare import records_of

WNIDS = ["n01443537", "n01629819", "n01641577"]


def ilsvrc(folder: Path, train: dict[str, dict[str, bytes]], validation: list[tuple[bytes, str]]) -> Path:
    """The two tars, without labels of the validation images."""
    folder.mkdir()
    names = {f"ILSVRC2012_val_{number:08d}.JPEG": content for number, (content, _) in enumerate(validation, start=1)}
    classes = {f"{wnid}.tar": tar_of(files) for wnid, files in train.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(names))
    return folder


def with_csv(folder: Path, wnids: list[str]) -> None:
    with (folder / "LOC_val_solution.csv").open("w", newline="") as file:
        rows = [(f"ILSVRC2012_val_{number:08d}", f"{wnid} 1 2 3 4") for number, wnid in enumerate(wnids, start=1)]
        csv.writer(file).writerows([("ImageId", "PredictionString"), *rows])


def with_kit(folder: Path, wnids: list[str]) -> None:
    numbers = {wnid: 7 - index for index, wnid in enumerate(WNIDS)}
    synsets = np.array(
        [(number, wnid) for wnid, number in numbers.items()], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{numbers[wnid]}\n" for wnid in wnids).encode()
    kit = {"kit/data/meta.mat": meta.getvalue(), "kit/data/ILSVRC2012_validation_ground_truth.txt": truth}
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(kit, "w:gz"))


@pytest.mark.parametrize("with_labels", [with_csv, with_kit])
def test_ilsvrc2012_is_read_from_its_own_tars(with_labels: Callable[[Path, list[str]], None], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    train = {wnid: {f"{wnid}_{index}.JPEG": jpeg(generator) for index in range(3)} for wnid in reversed(WNIDS)}
    validation = [(jpeg(generator, mode), wnid) for mode, wnid in zip(["RGB", "L", "RGB"], WNIDS[::-1], strict=True)]
    source = ilsvrc(tmp_path / "source", train, validation)
    with_labels(source, [wnid for _, wnid in validation])
    config = config_of(tmp_path, source, "ilsvrc2012")
    prepare(config)
    assert load_manifest(config, "train").classes == tuple(WNIDS)
    records = records_of(config, "train")
    assert len(records) == 9
    for label, wnid in enumerate(WNIDS):
        for name, content in train[wnid].items():
            found_label, pixels = records[f"{wnid}/{name.removesuffix('.JPEG')}"]
            assert found_label == label
            assert np.array_equal(pixels, expected(content))
    records = records_of(config, "val")
    for number, (content, wnid) in enumerate(validation, start=1):
        label, pixels = records[f"ILSVRC2012_val_{number:08d}"]
        assert label == WNIDS.index(wnid)
        assert np.array_equal(pixels, expected(content))


def test_the_search_of_large_tars_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ilsvrc2012, "SECONDS_BETWEEN_LINES", 0.0)
    generator = np.random.default_rng(0)
    train = {wnid: {f"{wnid}_0.JPEG": jpeg(generator)} for wnid in WNIDS}
    source = ilsvrc(tmp_path / "source", train, [(jpeg(generator), WNIDS[0])])
    with_csv(source, [WNIDS[0]])
    prepare(config_of(tmp_path, source, "ilsvrc2012"))
    told = re.findall(r"ILSVRC2012_img_train.tar: (\d+)% of its bytes searched", capsys.readouterr().out)
    assert len(told) == len(WNIDS)
    assert told == sorted(told, key=int)


def test_real_jpegs_in_ilsvrc_layout_equal_pillow_box(shared_data: Path, tmp_path: Path) -> None:
    """Full-size JPEGs of 20 classes of ImageNet, grey ones among them."""
    files = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))[:20]
    wnids = [file.name.split("_")[0] for file in files]
    train = {wnid: {file.name: file.read_bytes()} for wnid, file in zip(wnids, files, strict=True)}
    source = ilsvrc(tmp_path / "source", train, [(files[0].read_bytes(), wnids[0])])
    with_csv(source, wnids[:1])
    config = config_of(tmp_path, source, "ilsvrc2012", num_classes=20)
    prepare(config)
    records = records_of(config, "train")
    for wnid, file in zip(wnids, files, strict=True):
        label, pixels = records[f"{wnid}/{file.stem}"]
        assert label == sorted(wnids).index(wnid)
        assert np.array_equal(pixels, expected(file.read_bytes()))


@pytest.mark.parametrize("folder", ["ILSVRC/Data/CLS-LOC", ""])
@pytest.mark.parametrize("with_labels", [with_csv, with_kit])
def test_ilsvrc2012_unpacked_is_what_its_tars_are(
    with_labels: Callable[[Path, list[str]], None], folder: str, tmp_path: Path
) -> None:
    """Kaggle's folders of training classes beside one of validation images, in which other programs left files."""
    generator = np.random.default_rng(0)
    train = {wnid: {f"{wnid}_{index}.JPEG": jpeg(generator) for index in range(3)} for wnid in WNIDS}
    validation = [(jpeg(generator), wnid) for wnid in WNIDS[::-1]]
    tars, unpacked = ilsvrc(tmp_path / "tars", train, validation), tmp_path / "unpacked"
    for wnid, files in train.items():
        for name, content in files.items():
            write(str(unpacked / folder / "train" / wnid / name), content)
    for number, (content, _) in enumerate(validation, start=1):
        write(str(unpacked / folder / f"val/ILSVRC2012_val_{number:08d}.JPEG"), content)
    write(str(unpacked / folder / "test/ILSVRC2012_test_00000001.JPEG"), jpeg(generator))
    write(str(unpacked / folder / "val/.DS_Store"), b"")
    write(str(unpacked / folder / "train" / WNIDS[0] / ".ipynb_checkpoints/copy.JPEG"), jpeg(generator))
    prepared = {}
    for source in (tars, unpacked):
        with_labels(source, [wnid for _, wnid in validation])
        config = config_of(tmp_path, source, "ilsvrc2012", url=str(tmp_path / f"prepared-{source.name}"))
        prepared[source] = prepare(config)
    assert prepared[unpacked] == prepared[tars]
    assert {split: manifest.num_images for split, manifest in prepared[unpacked].items()} == {"train": 9, "val": 3}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/n01443537/0.JPEG"], "ILSVRC2012_img_train.tar is missing; give the folder .* or that of the unpacked"),
        (["train/n01443537/0.JPEG", "val/.DS_Store"], "unpacked/val: no images in it; unpack the data set again"),
        (["train/0.JPEG", "val/ILSVRC2012_val_00000001.JPEG"], "train/0.JPEG: not in a folder named by a WordNet id"),
        (["train/n01443537/0.JPEG", "val/ILSVRC2012_val_00000002.JPEG"], "ILSVRC2012_val_00000002.JPEG, whose class"),
    ],
)
def test_what_is_no_unpacked_ilsvrc2012_is_refused(
    files: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        write(str(tmp_path / "unpacked" / name), jpeg(np.random.default_rng(0)))
    with_csv(tmp_path / "unpacked", WNIDS[:1])
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, tmp_path / "unpacked", "ilsvrc2012"))
    assert capsys.readouterr().out == f"looking for images in {tmp_path / 'unpacked'}\n"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_train.tar is missing"),
        ("LOC_val_solution.csv", "neither ILSVRC2012_devkit_t12.tar.gz nor LOC_val_solution.csv"),
    ],
)
def test_missing_parts_of_ilsvrc2012_are_named(missing: str, message: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    source = ilsvrc(tmp_path / "source", {WNIDS[0]: {"a.JPEG": jpeg(generator)}}, [(jpeg(generator), WNIDS[0])])
    with_csv(source, WNIDS[:1])
    (source / missing).unlink()
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, source, "ilsvrc2012"))


def test_torn_and_foreign_tars_are_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    train = {WNIDS[0]: {f"{index}.JPEG": jpeg(generator) for index in range(9)}}
    source = ilsvrc(tmp_path / "source", train, [(jpeg(generator), "n99999999")])
    with_csv(source, ["n99999999"])
    config = config_of(tmp_path, source, "ilsvrc2012", num_classes=1)
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000001.JPEG, whose class is n99999999"):
        prepare(config)
    with_csv(source, WNIDS[:1])
    whole = (source / "ILSVRC2012_img_train.tar").read_bytes()
    (source / "ILSVRC2012_img_train.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match="download it again"):
        prepare(config)
