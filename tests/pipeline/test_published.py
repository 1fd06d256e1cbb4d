import pytest

from pipeline.manifest import Manifest
from pipeline.published import BENCHMARKS, Given, compare


def manifest_of(
    name: str = "cifar10",
    version: str = "cifar10-32-none",
    split: str = "test",
    images: int = 10_000,
    size: int = 32,
    channels: int = 3,
    levels: int = 256,
) -> Manifest:
    shard = {"file": "shard-000000.tar", "records": images, "bytes": 1, "sha256": ""}
    return Manifest.model_validate(
        {
            "name": name, "version": version, "split": split, "shape": (channels, size, size), "levels": levels,
            "resize": "none", "classes": tuple("0123456789"), "prepare_seed": 0, "shards": [shard],
        }
    )  # fmt: skip


def test_the_whole_test_split_of_cifar10_stands_beside_both_papers() -> None:
    comparison = compare(manifest_of(), "nothing")
    values = {figure.model: figure.value for figure in comparison.figures}
    assert values["Gated PixelCNN"] == 3.03
    assert values["PixelRNN, Diagonal BiLSTM"] == 3.00
    assert {figure.split for figure in comparison.figures} == {"test"}
    assert comparison.notes == comparison.refusals == comparison.refused == ()


def test_missing_images_and_given_classes_are_told() -> None:
    missing, given = compare(manifest_of(images=9980), "class").notes
    assert "9,980 of the 10,000 images" in missing
    assert "at most log2(10)/3072 = 0.0011 bits/dim more" in given


def test_training_figures_stand_beside_the_training_split_only() -> None:
    (figure,) = compare(manifest_of(split="train", images=49_928), "nothing").figures
    assert (figure.model, figure.value) == ("Gated PixelCNN", 2.90)


@pytest.mark.parametrize(
    ("changes", "given", "reason"),
    [
        (
            {"version": "cifar10-32-none-8levels"},
            "nothing",
            "version cifar10-32-none, these images are cifar10-32",
        ),
        ({"split": "val"}, "nothing", "the splits test and train, these images are 'val'"),
        ({"images": 10_001}, "nothing", "test has 10,000 images, this one 10,001"),
        ({"channels": 1}, "nothing", "they hold for 3x32x32 of 256 levels, these images are 1x32x32 of 256"),
        ({"levels": 8}, "nothing", "these images are 3x32x32 of 8"),
        ({}, "image", "this is p(image | numbers made of the image itself)"),
        (
            {"name": "imagenet32", "version": "imagenet32-box", "split": "val"},
            "nothing",
            "another resampling is",
        ),
        ({"name": "imagenet64", "version": "imagenet64-box", "size": 64}, "nothing", "another resampling is"),
        ({"name": "binary-mnist", "version": "binary-mnist-28-none-2levels", "size": 28}, "nothing", "at random once"),
    ],
)
def test_what_is_not_comparable_is_refused_with_the_reason(
    changes: dict[str, object], given: Given, reason: str
) -> None:
    comparison = compare(manifest_of(**changes), given)
    assert comparison.figures == ()
    (refusal,) = comparison.refusals
    assert refusal.startswith("not compared: ")
    assert "arXiv 1601.06759" in refusal
    assert reason in refusal
    assert comparison.refused


def test_other_data_sets_have_no_figures() -> None:
    for name, size in (("digits", 8), ("tiny-imagenet", 64), ("fashion-mnist", 28), ("imagenet", 128)):
        comparison = compare(manifest_of(name, f"{name}-{size}-none", size=size), "nothing")
        assert comparison.figures == comparison.refusals == ()
        assert comparison.notes == (f"no published figures are known for {name}",)


def test_every_figure_has_a_source_and_every_benchmark_a_version_or_a_reason() -> None:
    for benchmark in BENCHMARKS:
        assert bool(benchmark.version) != bool(benchmark.reason)
        for figure in benchmark.figures:
            assert "Table" in figure.source
            assert not benchmark.version or figure.split in dict(benchmark.images)
