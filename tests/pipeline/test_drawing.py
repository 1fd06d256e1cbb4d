"""Drawn images on storage: resumed, completed, from given labels and vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.trainable import TrainableModel
from pipeline import drawing, sample_files, storage
from pipeline.config import Config
from pipeline.drawing import draw_and_write, request_of, samples_url
from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.runs import run_sampling, run_training
from pipeline.sample_files import SampleManifest
from pipeline.storage import names_below, read
from tests.conftest import LocalWorker, dying_at
from tests.pipeline.test_model_kinds import GATED, of_kind


def asking(config: Config, **sample: Any) -> Config:
    return Config.model_validate(config.model_dump() | {"sample": config.sample.model_dump() | sample})


@pytest.fixture
def labelled(digits: Config) -> Config:
    return of_kind(digits, "gated-pixelcnn", **GATED)


@pytest.fixture
def model(labelled: Config) -> TrainableModel:
    torch.manual_seed(0)
    return labelled.build_model().eval()


def drawn(config: Config, model: TrainableModel, url: str, weights: str = "w") -> SampleManifest:
    manifest = draw_and_write(config, model, load_manifest(config, "val"), LocalWorker(""), url, weights)
    assert manifest is not None
    return manifest


def test_a_stopped_request_goes_on_and_gives_the_same_files(
    labelled: Config, model: TrainableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asking(labelled, count=7, batch_size=2)
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    expected = drawn(config, model, whole)
    real = drawing._draw_batch
    monkeypatch.setattr(drawing, "_draw_batch", dying_at(2, real))
    with pytest.raises(KeyboardInterrupt):
        drawn(config, model, stopped)
    there = sorted(str(path.relative_to(stopped)) for path in Path(stopped).rglob("*.npz"))
    assert there == ["parts/000000000.npz", "parts/000000002.npz"]
    starts = []
    monkeypatch.setattr(drawing, "_draw_batch", lambda *given: starts.append(given[3].start) or real(*given))
    assert drawn(config, model, stopped) == expected
    assert starts == [4, 6]
    names = sorted(str(path.relative_to(stopped)) for path in Path(stopped).rglob("*") if path.is_file())
    pictures = [f"images/{index:06d}.png" for index in range(7)]
    assert names == [*pictures, "manifest.json", "samples.npz", "samples.png"]
    for name in names:
        assert (Path(stopped) / name).read_bytes() == (Path(whole) / name).read_bytes()


@pytest.mark.parametrize("removed", [0, 1, 4])
def test_what_a_kill_amid_the_last_removals_left_goes_with_the_same_request(
    removed: int, labelled: Config, model: TrainableModel, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dying = asking(labelled, count=7, batch_size=2), dying_at(removed, storage.delete)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", dying)
        patch.setattr(sample_files, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            drawn(config, model, s3)
    assert len([name for name in names_below(s3) if name.startswith(("parts/", "request.json"))]) == 5 - removed
    whole = read(f"{s3}/manifest.json")
    monkeypatch.setattr(drawing, "_draw_batch", None)  # nothing is drawn again
    assert drawn(config, model, s3).model_dump_json(indent=1).encode() == whole
    pictures = [f"images/{index:06d}.png" for index in range(7)]
    assert names_below(s3) == [*pictures, "manifest.json", "samples.npz", "samples.png"]


@pytest.mark.parametrize("ends_at", [0, 6])
def test_two_that_draw_the_same_request_give_what_one_gives(
    ends_at: int, labelled: Config, model: TrainableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, url, real = asking(labelled, count=7, batch_size=2), str(tmp_path / "two"), drawing._draw_batch
    expected = drawn(config, model, str(tmp_path / "one"))

    def overtaken(*arguments: Any) -> Any:
        if arguments[3].start == ends_at:
            monkeypatch.setattr(drawing, "_draw_batch", real)
            assert drawn(config, model, url) == expected
        return real(*arguments)

    monkeypatch.setattr(drawing, "_draw_batch", overtaken)
    assert drawn(config, model, url) == expected
    assert names_below(url) == names_below(str(tmp_path / "one"))


def test_files_hold_what_was_drawn(labelled: Config, model: TrainableModel, tmp_path: Path) -> None:
    manifest = drawn(asking(labelled, count=5, labels=[3, 7]), model, str(tmp_path))
    written = json.loads((tmp_path / "manifest.json").read_text())
    with np.load(tmp_path / "samples.npz") as arrays:
        images, nats, labels = arrays["images"], arrays["nats"], arrays["labels"]
    assert labels.tolist() == [3, 3, 7, 7, 3]  # two a row of the grid
    assert written["count"] == manifest.count == 5
    assert written["sum_of_nats"] == pytest.approx(nats.sum())
    picture = np.asarray(Image.open(tmp_path / "images" / "000002.png"))
    np.testing.assert_array_equal(picture, np.round(images[2, 0] * (255 / 16)))


def test_another_request_at_the_same_place_is_refused(labelled: Config, model: TrainableModel, tmp_path: Path) -> None:
    config = asking(labelled, count=2)
    drawn(config, model, str(tmp_path))
    before = (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(UserError, match=r"another request \(sample.seed was 0, now 1\); give another --sample.url"):
        drawn(asking(config, seed=1), model, str(tmp_path))
    with pytest.raises(UserError, match="weights was w, now x"):
        drawn(config, model, str(tmp_path), weights="x")
    assert (tmp_path / "samples.npz").read_bytes() == before
    (tmp_path / "images" / "000000.png").unlink()
    drawn(config, model, str(tmp_path))  # the same request: nothing is drawn again
    assert not (tmp_path / "images" / "000000.png").exists()
    assert samples_url(config, "r", "s", "w") != samples_url(asking(config, seed=1), "r", "s", "w")
    assert request_of(config, "w") == request_of(asking(config, url="elsewhere"), "w")


def test_images_are_completed_from_their_upper_rows(labelled: Config, model: TrainableModel, tmp_path: Path) -> None:
    manifest = drawn(asking(labelled, count=4, keep_rows=5, png_files=False), model, str(tmp_path))
    with np.load(tmp_path / "samples.npz") as arrays:
        images, originals, labels, nats = (arrays[name] for name in ("images", "originals", "labels", "nats"))
    assert originals.shape == (2, 1, 8, 8)
    assert labels.tolist() == [0, 1]
    repeated = originals.repeat(2, axis=0)
    assert (images[:, :, :5] == repeated[:, :, :5]).all()
    assert (images[:, :, 5:] != repeated[:, :, 5:]).any()
    bits = nats.sum() / (4 * 3 * 8 * np.log(2))  # three rows of eight were drawn
    assert manifest.likelihood.startswith(f"{bits:.4f} bits/dim")
    assert not (tmp_path / "images").exists()
    assert Image.open(tmp_path / "samples.png").size == (42 * 4, 42 * 2)


def test_a_decoder_draws_from_given_vectors(digits: Config, tmp_path: Path) -> None:
    config = of_kind(digits, "pixelcnn-autoencoder")
    np.save(tmp_path / "h.npy", np.array([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0], [0.5, 0.5, 0.5]]))
    model = config.build_model().eval()
    drawn(asking(config, vectors=str(tmp_path / "h.npy")), model, str(tmp_path / "out"))
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["images"].shape == (6, 1, 8, 8)
        assert arrays["vectors"][:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.5, 0.5]
    np.save(tmp_path / "bad.npy", np.zeros((2, 4)))
    (tmp_path / "text.npy").write_text("no array")
    for name, told in (("bad", r"shape \[2, 4\]; the model wants finite numbers \[n, 3\]"), ("text", "not a readable")):
        with pytest.raises(UserError, match=told):
            drawn(asking(config, vectors=str(tmp_path / f"{name}.npy")), model, str(tmp_path / "out2"))


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"labels": [3, 10]}, r"sample.labels \[10\]: digits has the classes 0 to 9"),
        ({"keep_rows": 8}, "sample.keep_rows 8: nothing is left to draw of 8 rows"),
        ({"vectors": "h.npy"}, "sample.vectors h.npy: the model is conditioned on no vectors"),
        (
            {"labels": [1], "keep_rows": 2},
            r"sample.labels \[1\]: with sample.keep_rows images are completed",
        ),
        ({"interpolate": True}, "sample.interpolate: model.kind gated-pixelcnn has no encoder to interpolate by"),
        ({"mse_run": "runs/mse"}, "sample.mse_run runs/mse: it stands beside an auto-encoder's reconstructions only"),
    ],
)
def test_what_does_not_fit_is_told(
    sample: dict[str, Any], told: str, labelled: Config, model: TrainableModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        drawn(asking(labelled, **sample), model, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "sample", "told"),
    [
        ("gated-pixelcnn", {"labels": [1], "conditional": False}, "sample.conditional is false; leave one out"),
        ("pixelcnn-autoencoder", {"keep_rows": 2}, "only a density model completes images"),
        ("pixelcnn-autoencoder", {"interpolate": True, "vectors": "h.npy"}, "sample.vectors are drawn as given"),
        ("pixelcnn-autoencoder", {"mse_run": "runs/mse", "vectors": "h.npy"}, "sample.mse_run runs/mse: it stands"),
        ("pixelcnn-autoencoder", {"mse_run": "runs/mse", "interpolate": True}, "sample.mse_run runs/mse: it stands"),
    ],
)
def test_a_training_whose_grids_could_not_be_drawn_is_refused_before_it_begins(
    kind: str, sample: dict[str, Any], told: str, digits: Config
) -> None:
    model = GATED | {"condition_dropout": 0.3} if kind == "gated-pixelcnn" else {}
    config = asking(of_kind(digits, kind, **model), **sample)
    for job in (run_training, run_sampling):
        with pytest.raises(UserError, match=told):
            job(config)
    assert not Path(config.run.url).exists()


def test_labels_are_refused_where_nothing_reads_them(digits: Config, tmp_path: Path) -> None:
    config = of_kind(digits, "pixelcnn")
    with pytest.raises(UserError, match=r"sample.labels \[1\]: the model reads no labels"):
        drawn(asking(config, labels=[1]), config.build_model(), str(tmp_path))


def test_object_storage_gets_what_a_folder_gets(
    labelled: Config, model: TrainableModel, tmp_path: Path, s3: str
) -> None:
    config = asking(labelled, count=3, batch_size=2)
    assert drawn(config, model, f"{s3}/drawn") == drawn(config, model, str(tmp_path / "drawn"))
    names = names_below(f"{s3}/drawn")
    assert names == names_below(str(tmp_path / "drawn"))
    assert all(read(f"{s3}/drawn/{name}") == (tmp_path / "drawn" / name).read_bytes() for name in names)
