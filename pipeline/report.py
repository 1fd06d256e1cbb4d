"""What an evaluation found, as a report: metrics for MLflow, Markdown for a person, JSON for a program, a picture."""

import json
import textwrap
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from models.autoencoder import PixelCNNAutoEncoder
from pipeline.breakdown import Breakdown, Part
from pipeline.config import Config
from pipeline.evaluate import Measured, in_words
from pipeline.manifest import Manifest
from pipeline.markdown import markdown_table
from pipeline.position_map import position_png
from pipeline.published import Comparison, Given, compare

MARKDOWN_NAME, JSON_NAME, PICTURE_NAME = "report.md", "report.json", "position_bits_per_dim.png"
MOST_CLASSES = 20
"""More than these are told by the EXTREME_CLASSES best and worst."""
EXTREME_CLASSES = 5
WIDTH = 110
"""Characters of a line of prose."""
GIVEN: dict[Given, str] = {
    "nothing": "nothing",
    "class": "the image's class",
    "image": "numbers that a network made of the image itself",
}
INTERVAL = (
    "The interval is the normal approximation: the mean over images, 1.96 of its standard errors to each side. It is "
    "for the mean of all images drawn alike, if these were drawn independently, and says nothing of another run."
)


@dataclass(frozen=True)
class Report:
    """The measure of a checkpoint on a split; `parts` only of a density model."""

    config: Config
    manifest: Manifest
    step: int
    measured: Measured
    parts: Breakdown | None
    seconds: float
    """Of the whole pass over the split, reading included."""
    workers: int

    @property
    def name(self) -> str:
        """The split, and whether a model that takes labels got none."""
        return self.manifest.split + ("" if self.config.evaluate.conditional else "_unconditional")

    @cached_property
    def given(self) -> Given:
        """What the likelihood is given."""
        model = self.config.empty_model()
        if isinstance(model, PixelCNNAutoEncoder):
            return "image"
        return "class" if model.reads_labels and self.config.evaluate.conditional else "nothing"

    def metrics(self) -> dict[str, float]:
        """The metrics' names and values, the measure first; classes and positions stand in the report only."""
        values = self.measured.metrics("") | {
            f"/sum_of_{self.measured.measure}": self.measured.total,
            "/images_per_second": self.measured.images / self.seconds,
        }
        if self.parts:
            values |= {
                f"/bits_per_dim_{part.name}": part.bits_per_dim for part in self.parts.colours() if part.bits_per_dim
            }
            ends = ("/bits_per_dim_ci95_low", "/bits_per_dim_ci95_high")
            values |= dict(zip(ends, self.parts.interval() or (), strict=False))
        return {f"evaluate_{self.name}{name}": value for name, value in values.items()}

    def files(self) -> dict[str, bytes]:
        """The report's files by name; what a program waits for comes last."""
        files = {}
        if self.parts:
            title = f"{self.config.run.name}, step {self.step:,}, {self.name} of {self.manifest.version}"
            files[PICTURE_NAME] = position_png(self.parts.positions(), title)
        return files | {MARKDOWN_NAME: self.to_markdown().encode(), JSON_NAME: self.to_json().encode()}

    def to_json(self) -> str:
        """Everything, each class and position."""
        content: dict[str, Any] = {
            "run": self.config.run.name,
            "step": self.step,
            "split": self.manifest.split,
            "data_version": self.manifest.version,
            "manifest_digest": self.manifest.digest,
            "given": self.given,
            "images": self.measured.images,
            "dims": self.measured.dims,
            "workers": self.workers,
            "seconds": self.seconds,
            "metrics": self.metrics(),
        }
        if self.parts:
            content |= {
                "interval": INTERVAL,
                "colours": [asdict(part) for part in self.parts.colours()],
                "classes": [asdict(part) for part in self.parts.classes(self.manifest.classes)],
                "position_bits_per_dim": self.parts.positions().tolist(),
                "published": asdict(compare(self.manifest, self.given)),
            }
        return json.dumps(content, indent=1)

    def to_markdown(self) -> str:
        """The report as a person reads it, in a terminal or rendered."""
        lines = [f"# {self.config.run.name} at step {self.step:,} on {self.name}", "", self._summary()]
        if self.parts:
            lines += [
                "",
                textwrap.fill(INTERVAL, WIDTH),
                "",
                "## By colour",
                "",
                _table("colour", self.parts.colours()),
            ]
            lines += ["", "## By class", "", *_classes(self.parts.classes(self.manifest.classes))]
            positions = self.parts.positions()
            lines += ["", "## By position", ""]
            lines += [
                f"From {positions.min():.4f} to {positions.max():.4f} bits/dim, at the upper left corner "
                f"{positions[0, 0]:.4f}: {PICTURE_NAME}, and each in {JSON_NAME}."
            ]
            comparison = compare(self.manifest, self.given)
            lines += ["", "## Published figures", "", *_published(comparison, self.measured)]
        return "\n".join(lines) + "\n"

    def _summary(self) -> str:
        rows = [("what", "value"), ("measure", in_words(self.measured.metrics("")))]
        interval = self.parts.interval() if self.parts else None
        if interval:
            rows.append(("95% interval", f"{interval[0]:.4f} to {interval[1]:.4f} bits/dim"))
        if self.parts:
            rows.append(("given", GIVEN[self.given]))
        return markdown_table(
            [
                *rows,
                (f"sum of {self.measured.measure}", repr(self.measured.total)),
                ("images", f"{self.measured.images:,}, each once"),
                ("data version", self.manifest.version),
                (
                    "speed",
                    f"{self.measured.images / self.seconds:,.1f} images/s in {self.seconds:,.1f} s, reading included, "
                    f"on {self.workers} worker{'s' if self.workers > 1 else ''}",
                ),
            ]
        )


def _table(kind: str, parts: list[Part]) -> str:
    rows = [
        (part.name, f"{part.images:,}", f"{part.nats / part.images:,.4f}", f"{part.bits_per_dim:.4f}") for part in parts
    ]
    return markdown_table([(kind, "images", "nats an image", "bits/dim"), *rows])


def _classes(classes: list[Part]) -> list[str]:
    """The classes from the least bits/dim to the most; where they are many, the two ends."""
    seen = sorted((part for part in classes if part.images), key=lambda part: part.nats / part.images)
    lines = [_table("class", seen)]
    if len(seen) > MOST_CLASSES:
        best, worst = seen[:EXTREME_CLASSES], seen[-EXTREME_CLASSES:]
        lines = [f"The {EXTREME_CLASSES} of least bits/dim, of {len(seen):,}; all stand in {JSON_NAME}:", ""]
        lines += [_table("class", best), "", f"The {EXTREME_CLASSES} of most:", "", _table("class", worst)]
    if len(seen) < len(classes):
        lines += ["", f"{len(classes) - len(seen):,} classes have no image in this split."]
    return lines


def _published(comparison: Comparison, measured: Measured) -> list[str]:
    """The figures that are comparable, with ours less each; what must be said of them; what is refused."""
    lines = []
    if comparison.figures:
        metrics = measured.metrics("")
        rows = [("model", "published", "ours less that", "source")]
        for figure in comparison.figures:
            ours = metrics["/bits_per_dim" if figure.unit == "bits/dim" else "/nats"]
            bound = "<= " if figure.at_most else ""
            told = f"{bound}{figure.value:.2f} {figure.unit}"
            rows.append((figure.model, told, f"{ours - figure.value:+.2f}", figure.source))
        lines += [markdown_table(rows), ""]
    said = (f"- {line}" for line in (*comparison.notes, *comparison.refusals))
    return [*lines, *(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in said)]
