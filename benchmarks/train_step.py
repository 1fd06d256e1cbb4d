"""One training step of each model against its straightforward full-kernel masked form, side by side in one run.

    python -m benchmarks.train_step [MODEL ...] [--seconds 40] [--batch 16] [--threads 2]

For each model: that both give the same logits from the same weights; training images/s of both, their steps in turn;
GFLOP/s by the docstring's formula; the floor, which is the FLOPs at the matmul rate measured in the same run; and the
memory that a step adds, each in a process of its own. A step is what `jobs.train` does to a batch: forward, nats,
backward, clipping, AdamW, both in the environment of a CPU worker (`pipeline.allocator`).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference_models import Reference
from benchmarks.words import count, positive
from models.autoregressive import AutoregressiveModel
from models.likelihood import nats_of_images
from models.trainable import count_parameters
from pipeline.allocator import KEEP_FREED_MEMORY
from pipeline.cost import TRAINING_PASSES
from pipeline.model_config import GatedPixelCNNModel, ImageShape, PixelCNNModel, PixelRNNModel
from pipeline.optim import build_optimizer
from pipeline.presets import PRESETS

SHAPE = ImageShape(image_size=32, channels=3, levels=256, num_classes=10)
MODELS = {
    "gated-pixelcnn": GatedPixelCNNModel(num_layers=10, num_filters=66, head_filters=132, conditional=False),
    "pixelcnn": PixelCNNModel(num_layers=10, num_filters=66, head_filters=132),
    "row-lstm": PixelRNNModel(kind="row-lstm", num_layers=5, num_filters=66, head_filters=132),
    "diagonal-bilstm": PixelRNNModel(kind="diagonal-bilstm", num_layers=5, num_filters=66, head_filters=132),
}


def model_name(text: str) -> str:
    """A model's name, as argparse's type of an argument."""
    if text not in MODELS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(MODELS)}")
    return text


def matmul_peak(seconds: float = 3.0) -> float:
    """GFLOP/s of float32 matrix products of 2048, the best of several."""
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def built(name: str) -> AutoregressiveModel:
    """The model with the same random weights every time."""
    torch.manual_seed(0)
    return MODELS[name].build(SHAPE)


def step_of(model: nn.Module, batch: int) -> Callable[[], None]:
    """One training step on the same random images every time; the reference's loss is torch's own cross entropy."""
    optimizer = build_optimizer(model, PRESETS["cifar10-small"].config.train)
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        logits = model(images)
        if isinstance(model, Reference):
            loss = functional.cross_entropy(logits.permute(0, 4, 1, 2, 3), images.long())
        else:
            loss = nats_of_images(logits, images).sum() / images.numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def compare(name: str, seconds: float, batch: int) -> tuple[float, float, float]:
    """Seconds a step of ours and of the reference, in turn, and the largest difference of their logits."""
    ours = built(name).to(memory_format=torch.channels_last)
    reference = Reference(built(name))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        difference = (ours(images) - reference(images)).abs().max().item()
    steps = [step_of(ours, batch), step_of(reference, batch)]
    times: list[list[float]] = [[], []]
    for step in steps:
        step()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for step, taken in zip(steps, times, strict=True):
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
    return median(times[0]), median(times[1]), difference


def megabytes(name: str, which: str, batch: int, threads: int) -> float:
    """Memory that two steps add to a process that holds the model."""
    command = [sys.executable, "-m", "benchmarks.train_step", name, "--memory", which]
    command += ["--batch", str(batch), "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(name: str, which: str, batch: int) -> float:
    """The same, measured in this process."""
    model: nn.Module = built(name).to(memory_format=torch.channels_last)
    if which == "reference":
        model = Reference(built(name))
    step = step_of(model, batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak_megabytes()
    step()
    step()
    return _peak_megabytes() - before


def _peak_megabytes() -> float:
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def row(name: str, seconds: float, batch: int, threads: int) -> str:
    """A line of the table."""
    peak = matmul_peak()
    ours, reference, difference = compare(name, seconds, batch)
    assert difference < 1e-3, f"{name}: the logits differ by {difference}"
    model = built(name)
    flops = TRAINING_PASSES * model.flops(32, 32) * batch / 1e9
    used: list[Tensor | float] = [megabytes(name, which, batch, threads) for which in ("ours", "reference")]
    return (
        f"| {name} | {count_parameters(model) / 1e6:.2f} M | {flops / batch:.2f} | {batch / ours:.1f} | "
        f"{batch / reference:.1f} | {reference / ours:.2f} | {flops / ours:.0f} | {peak:.0f} | "
        f"{flops / peak / ours:.0%} | {used[0]:.0f} | {used[1]:.0f} | {difference:.1e} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=list(MODELS), type=model_name, metavar="MODEL", help=", ".join(MODELS)
    )
    parser.add_argument("--seconds", type=positive, default=40.0)
    parser.add_argument("--batch", type=count, default=16)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--memory", choices=("ours", "reference"))
    words = parser.parse_intermixed_args()
    torch.set_num_threads(words.threads)
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():  # read when a process starts
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:]],
            os.environ | KEEP_FREED_MEMORY,
        )
    if words.memory:
        print(memory(words.models[0], words.memory, words.batch))
        return
    print(f"torch {torch.__version__}, {words.threads} threads, batch {words.batch}, 32x32x3, float32")
    print(
        "| model | parameters | GFLOP an image | images/s | reference images/s | ratio | GFLOP/s | matmul GFLOP/s | "
        "share | MiB a step | reference MiB | largest logit difference |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in words.models:
        print(row(name, words.seconds, words.batch, words.threads), flush=True)


if __name__ == "__main__":
    main()
