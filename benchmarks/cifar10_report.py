"""The rows that `benchmarks.gpu_cifar10` wrote, as a curve and as Markdown."""

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.device import device_name
from models.trainable import count_parameters
from pipeline.config import Config
from pipeline.cost import training_flops
from pipeline.plot import figure_png
from pipeline.storage import write

Row = dict[str, Any]


def key_of(row: Row) -> tuple[int, str, str, bool]:
    """What an evaluation was of: step, weights, split, and whether labels were given."""
    return row["step"], row["weights"], row["split"], row["labels"]


def draw_curve(config: Config, rows: list[Row], file: Path) -> None:
    """A picture of bits/dim over the images that training has seen."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    trained = [row for row in rows if "train/bits_per_dim" in row]
    axes.plot(
        [row["images_seen"] for row in trained], [row["train/bits_per_dim"] for row in trained], lw=0.6,
        label="training batches, as trained",
    )  # fmt: skip
    evaluated = sorted((row for row in rows if row["kind"] == "evaluation"), key=lambda row: row["step"])
    for key in dict.fromkeys(key_of(row)[1:] for row in evaluated):
        own = [row for row in evaluated if key_of(row)[1:] == key]
        weights, split, labels = key
        title = f"{split}, {own[0]['images']:,} images, {weights} weights{'' if labels else ', without labels'}"
        axes.plot([row["images_seen"] for row in own], [row["bits_per_dim"] for row in own], marker="o", label=title)
    axes.set(xlabel="images seen", ylabel="bits/dim", title=config.run.name)
    told = [row["bits_per_dim"] for row in evaluated] or [row["train/bits_per_dim"] for row in trained]
    last = min(told, default=0.0)
    axes.set_ylim(last - 0.1, last + 1.5)
    axes.legend()
    write(str(file), figure_png(figure))


def report(config: Config, rows: list[Row], device: torch.device) -> str:
    """What was trained, in what time, and the evaluations, as Markdown."""
    lines = [row for row in rows if "train/bits_per_dim" in row]
    seconds = max(row["seconds"] for row in rows if row["kind"] == "train")
    rate = sum(row["train/images_per_second"] for row in lines[1:]) / max(1, len(lines) - 1)
    waited = sum(row["train/data_wait_fraction"] for row in lines[1:]) / max(1, len(lines) - 1)
    model, trained = config.empty_model(), config.train
    told = [
        f"{device_name(device)}, torch {torch.__version__}; {json.dumps(config.model.model_dump())}",
        f"{count_parameters(model) / 1e6:.2f} M parameters, {training_flops(config) / 1e9:.1f} GFLOP an image; "
        f"{trained.steps:,} steps of {trained.batch_size} = {trained.steps * trained.batch_size:,} images, flips "
        f"{'on' if trained.horizontal_flips else 'off'}",
        f"{seconds / 60:.1f} minutes in the training loop; {rate:,.1f} images/s, "
        f"{rate * training_flops(config) / 1e12:.3f} TFLOP/s, "
        f"data wait {waited:.2%} (means of all lines but the first)",
        "",
        "| images seen | weights | split | labels given | images | bits/dim | s |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: |",
    ]
    evaluated = sorted((row for row in rows if row["kind"] == "evaluation"), key=key_of)
    reads = bool(getattr(model, "reads_labels", False))
    for row in evaluated:
        labels = "yes" if row["labels"] and reads else "no"
        told.append(
            f"| {row['images_seen']:,} | {row['weights']} | {row['split']} | {labels} | {row['images']:,} | "
            f"{row['bits_per_dim']:.4f} | {row['seconds']:.1f} |"
        )
    return "\n".join(told)
