"""Likelihoods that the papers state, and with what they may be compared.

A figure holds for one version of one data set, on one split. Of 1606.05328 and 1601.06759 only those figures stand here
that a second text quotes as well; docs/evaluation.md says which text.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from pipeline.manifest import Manifest

Given = Literal["nothing", "class", "image"]
"""What the likelihood is given: nothing, the class of the image, or numbers that a network made of the image itself."""


@dataclass(frozen=True)
class Figure:
    """A likelihood that a paper states; `at_most` where it is a variational bound."""

    model: str
    value: float
    source: str
    split: str = "test"
    unit: Literal["bits/dim", "nats an image"] = "bits/dim"
    at_most: bool = False


@dataclass(frozen=True)
class Benchmark:
    """The published figures of a data set.

    `names` matches a manifest's name, `shape` its images' height and width; `version` is the data version that the
    figures may be compared with, or None for the `reason`; `images` says how many images the papers' splits have.
    """

    title: str
    names: str
    shape: tuple[int, int, int]
    levels: int
    figures: tuple[Figure, ...]
    version: str | None = None
    reason: str = ""
    images: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Figures that may stand beside a measurement, what must be said with them, and which are refused and why."""

    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[Figure, ...] = ()
    refusals: tuple[str, ...] = ()


GATED, PIXELRNN = "arXiv 1606.05328", "arXiv 1601.06759"
RESAMPLED = (
    "they were measured on the downsampled ImageNet of its authors, whose pixels are not those of any version that "
    "`prepare` makes; another resampling is another data set"
)

BENCHMARKS = (
    Benchmark(
        title="CIFAR-10",
        names=r"cifar-?10",
        shape=(3, 32, 32),
        levels=256,
        version="cifar10-32-none",
        images=(("test", 10_000), ("train", 50_000)),
        figures=(
            Figure("uniform distribution", 8.00, f"{GATED}, Table 1"),
            Figure("multivariate Gaussian", 4.70, f"{GATED}, Table 1"),
            Figure("NICE", 4.48, f"{GATED}, Table 1"),
            Figure("DRAW", 4.13, f"{GATED}, Table 1", at_most=True),
            Figure("Deep GMMs", 4.00, f"{GATED}, Table 1"),
            Figure("PixelCNN", 3.14, f"{PIXELRNN}, Table 5"),
            Figure("PixelRNN, Row LSTM", 3.07, f"{PIXELRNN}, Table 5"),
            Figure("Gated PixelCNN", 3.03, f"{GATED}, Table 1"),
            Figure("PixelRNN, Diagonal BiLSTM", 3.00, f"{PIXELRNN}, Table 5"),
            Figure("Gated PixelCNN", 2.90, f"{GATED}, Table 1", split="train"),
        ),
    ),
    Benchmark(
        title="ImageNet 32x32",
        names=r"imagenet(-?32)?",
        shape=(3, 32, 32),
        levels=256,
        reason=RESAMPLED,
        figures=(
            Figure("Conv DRAW", 4.40, f"{GATED}, Table 2", split="val", at_most=True),
            Figure("PixelRNN", 3.86, f"{PIXELRNN}, Table 6", split="val"),
            Figure("Gated PixelCNN", 3.83, f"{GATED}, Table 2", split="val"),
        ),
    ),
    Benchmark(
        title="ImageNet 64x64",
        names=r"imagenet(-?64)?",
        shape=(3, 64, 64),
        levels=256,
        reason=RESAMPLED,
        figures=(
            Figure("Conv DRAW", 4.10, f"{GATED}, Table 2", split="val", at_most=True),
            Figure("PixelRNN", 3.63, f"{PIXELRNN}, Table 6", split="val"),
            Figure("Gated PixelCNN", 3.57, f"{GATED}, Table 2", split="val"),
        ),
    ),
    Benchmark(
        title="binarised MNIST",
        names=r"((binary|binarised|binarized)-?)?mnist(-?(binary|binarised|binarized))?",
        shape=(1, 28, 28),
        levels=2,
        reason=(
            "its pixels were drawn at random once, white with the grey level's probability (Salakhutdinov and Murray, "
            "2008); `prepare` keeps levels or cuts them at fixed thresholds, which is another data set"
        ),
        figures=(
            Figure("DRAW", 80.97, f"{PIXELRNN}, Table 4", unit="nats an image", at_most=True),
            Figure("PixelRNN, Diagonal BiLSTM, 7 layers", 79.20, f"{PIXELRNN}, Table 4", unit="nats an image"),
        ),
    ),
)


def compare(manifest: Manifest, given: Given) -> Comparison:
    """Which published figures may stand beside a likelihood of the split, measured with what was `given`."""
    benchmark = _benchmark_of(manifest)
    if benchmark is None:
        return Comparison(notes=(f"no published figures are known for {manifest.name}",))
    refusal = _refusal(benchmark, manifest, given)
    if refusal:
        papers = " and ".join(sorted({figure.source for figure in benchmark.figures}))
        return Comparison(
            refused=benchmark.figures, refusals=(f"not compared: {benchmark.title} of {papers}: {refusal}",)
        )
    return Comparison(
        figures=tuple(figure for figure in benchmark.figures if figure.split == manifest.split),
        notes=_notes(benchmark, manifest, given),
    )


def _benchmark_of(manifest: Manifest) -> Benchmark | None:
    for benchmark in BENCHMARKS:
        fits = re.fullmatch(benchmark.names, manifest.name.lower()) or manifest.version == benchmark.version
        if fits and manifest.shape[1:] == benchmark.shape[1:]:
            return benchmark
    return None


def _refusal(benchmark: Benchmark, manifest: Manifest, given: Given) -> str:
    """Why the figures may not be compared; nothing where they may."""
    if benchmark.version is None:
        return benchmark.reason
    if manifest.version != benchmark.version:
        return f"they hold for data version {benchmark.version}, these images are {manifest.version}"
    if (manifest.shape, manifest.levels) != (benchmark.shape, benchmark.levels):
        theirs, ours = ("x".join(map(str, shape)) for shape in (benchmark.shape, manifest.shape))
        return f"they hold for {theirs} of {benchmark.levels} levels, these images are {ours} of {manifest.levels}"
    images = dict(benchmark.images)
    if manifest.split not in images:
        return f"they hold for the splits {' and '.join(images)}, these images are {manifest.split!r}"
    if manifest.num_images > images[manifest.split]:
        return f"their {manifest.split} has {images[manifest.split]:,} images, this one {manifest.num_images:,}"
    if given == "image":
        return "they are of p(image), this is p(image | numbers made of the image itself)"
    return ""


def _notes(benchmark: Benchmark, manifest: Manifest, given: Given) -> tuple[str, ...]:
    """What must be said beside the figures.

    The mixture of p(image | class) with equal weights is a p(image) of at least 1 / classes of the true class's term.
    """
    notes, all_images = [], dict(benchmark.images)[manifest.split]
    if manifest.num_images < all_images:
        notes.append(
            f"ours is over {manifest.num_images:,} of the {all_images:,} images of {benchmark.title}'s "
            f"{manifest.split} split, theirs are over all"
        )
    if given == "class":
        classes, dims = len(manifest.classes), math.prod(manifest.shape)
        notes.append(
            f"ours is given the class, theirs are not: the mixture over the {classes} classes with equal weights needs "
            f"at most log2({classes})/{dims} = {math.log2(classes) / dims:.4f} bits/dim more"
        )
    return tuple(notes)
