import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.prepare import prepare
from pipeline.sources.npz import read_npz
from pipeline.sources.opening import open_source
from tests.conftest import tiny_config
from tests.pipeline.test_prepare import records_of

GREY = np.random.default_rng(4).integers(0, 256, (12, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(5).integers(0, 256, (12, 9, 14, 3), dtype=np.uint8)
LABELS = np.tile([7, -1, 30], 4)


def npz_config(source: Path, **changes: object) -> Config:
    data = {
        "name": "faces", "source": str(source), "source_format": "npz", "levels": 256, "num_classes": 3,
        "holdout_fraction": 0.25,
    }  # fmt: skip
    return tiny_config(source.parent, data=data | changes, model={"num_filters": 9, "head_filters": 18})


@pytest.mark.parametrize("images", [GREY, GREY[..., None]], ids=["n h w", "n h w 1"])
@pytest.mark.parametrize("labels", ["labels", "subject"])
def test_npz_keeps_every_pixel_and_names_classes_by_number(images: np.ndarray, labels: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=images, **{labels: LABELS}, other=np.zeros(3))
    config = npz_config(tmp_path / "a.npz")
    manifests = prepare(config)
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 9, "val": 3}
    assert manifests["val"].classes == ("-1", "7", "30"), "sorted as numbers"
    assert manifests["val"].version == "faces-8-none"
    found = records_of(config, "train") | records_of(config, "val")
    assert len(found) == 12
    for key, (label, pixels) in found.items():
        index = int(key.removeprefix("image"))
        assert int(manifests["val"].classes[label]) == LABELS[index]
        assert np.array_equal(pixels[0], GREY[index])


def loaded(config: Config) -> dict[str, np.ndarray]:
    splits = open_source(config.data).splits.values()
    return {image.name: image.load() for images in splits for image in images}


def test_colours_are_converted_as_pillow_does(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", images=GREY, labels=LABELS)
    assert np.array_equal(
        loaded(npz_config(tmp_path / "grey.npz", channels=3))["image00004"], GREY[4, ..., None][..., [0] * 3]
    )
    np.savez(tmp_path / "colour.npz", images=COLOUR, labels=LABELS)
    config = npz_config(tmp_path / "colour.npz", channels=1, resize="none")
    assert np.array_equal(loaded(config)["image00004"][..., 0], np.asarray(Image.fromarray(COLOUR[4]).convert("L")))


@pytest.mark.parametrize("resize", ["box", "center-crop-box"])
def test_npz_and_class_folders_of_the_same_images_are_resized_alike(resize: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "colour.npz", images=COLOUR, labels=LABELS)
    for index, (image, label) in enumerate(zip(COLOUR, LABELS, strict=True)):
        (tmp_path / f"folders/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"folders/{label}/image{index:05d}.png")
    changes = {"channels": 3, "resize": resize}
    folders = loaded(npz_config(tmp_path / "folders", source_format="class-folders", **changes))
    by_stem = {Path(name).stem: pixels for name, pixels in folders.items()}
    archive = loaded(npz_config(tmp_path / "colour.npz", **changes))
    assert archive.keys() == by_stem.keys()
    for name, pixels in archive.items():
        assert pixels.shape == (8, 8, 3)
        assert np.array_equal(pixels, by_stem[name])


def test_people_of_the_shared_faces_are_held_out_whole(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "faces.npz").symlink_to(shared_data / "att_faces.npz")
    config = npz_config(
        tmp_path / "faces.npz", image_size=32, num_classes=40, resize="center-crop-box", levels=2, holdout="classes",
        holdout_fraction=0.1,
    )  # fmt: skip
    manifests = prepare(config)
    assert manifests["val"].version == "faces-32-center-crop-box-2levels"
    assert manifests["train"].classes == manifests["val"].classes == tuple(str(number) for number in range(40))
    train, val = records_of(config, "train"), records_of(config, "val")
    people = {label for label, _ in val.values()}
    assert len(people) == 4
    assert len(val) == 40
    assert len(train) == 360
    assert not people & {label for label, _ in train.values()}
    with np.load(shared_data / "att_faces.npz", allow_pickle=False) as faces:
        images, subjects = faces["images"], faces["subject"]
    for key, (label, pixels) in (train | val).items():
        index = int(key.removeprefix("image"))
        square = Image.fromarray(images[index]).crop((0, 10, 92, 102)).resize((32, 32), Image.Resampling.BOX)
        assert label == subjects[index]
        assert np.array_equal(pixels[0], np.asarray(square) >= 128)


def npz_of(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def raw_member() -> bytes:
    buffer = io.BytesIO(npz_of(labels=LABELS))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("images", b"no array")
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, GREY)
    return buffer.getvalue()


def altered() -> bytes:
    content = npz_of(images=GREY, labels=LABELS)
    return content[:300] + bytes([content[300] ^ 1]) + content[301:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable npz of plain arrays .*write it again by numpy.savez"),
        (b"no archive", "not a readable npz of plain arrays .*not a zip file"),
        (npy(), "not a readable npz of plain arrays .*not a zip file"),
        (npz_of(images=GREY, labels=LABELS)[:-400], "not a readable npz of plain arrays"),
        (altered(), "not a readable npz of plain arrays .*CRC"),
        (npz_of(images=GREY, labels=np.array([None] * 12)), "not a readable npz .*Object arrays cannot be loaded"),
        (npz_of(), "holds no arrays; write images and either labels or subject by numpy.savez"),
        (npz_of(pictures=GREY, labels=LABELS), "holds pictures, labels; write images and either labels or subject"),
        (npz_of(images=GREY), "holds images; write images and either labels or subject"),
        (npz_of(images=GREY, labels=LABELS, subject=LABELS), "holds images, labels, subject; write images and either"),
        (npz_of(images=GREY / 255, labels=LABELS), r"images is float64 of shape \(12, 8, 8\); make it uint8 of shape"),
        (npz_of(images=GREY[0], labels=LABELS), r"images is uint8 of shape \(8, 8\); make it"),
        (npz_of(images=GREY.reshape(12, 4, 8, 2), labels=LABELS), r"images is uint8 of shape \(12, 4, 8, 2\); make it"),
        (raw_member(), r"images is \|S8 of shape \(\); make it"),
        (npz_of(images=GREY[:0], labels=LABELS[:0]), r"images of shape \(0, 8, 8\) has no pixels"),
        (npz_of(images=GREY, labels=LABELS / 2), r"labels is float64 of shape \(12,\); make it integers"),
        (npz_of(images=GREY, subject=LABELS[None]), r"subject is int64 of shape \(1, 12\); make it integers"),
        (npz_of(images=GREY, subject=LABELS[1:]), "12 images but 11 numbers in subject; write one for each image"),
    ],
)  # fmt: skip
def test_an_npz_that_is_not_labelled_images_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^data.source {path}: {message}"):
        read_npz(path)


def test_a_folder_is_no_npz(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable npz"):
        read_npz(tmp_path)
