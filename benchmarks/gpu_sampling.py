"""Images/s of drawing and of evaluation on a GPU, for the presets at the papers' sizes, with random weights.

    python -m benchmarks.gpu_sampling [PRESET ...] [--batch 1 16 64 256 1024] [--device cuda] [--precision bfloat16]

Weights don't change the time, so none are loaded. Each batch is drawn once to warm up and once timed, from the seeds to
the images, by the incremental sampler; evaluated it is from images in the host's memory to the sum of their
losses, five times over, as `jobs.evaluate` does it: the model's forward pass without torch.compile. The FLOPs are one
forward pass an image by the docstring's formula, the peak a bfloat16 matmul's of the same run. `--device cpu --batch 1
--size 8` tries the script without a GPU.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.device import device_name, device_of, free_memory, matmul_peak, seconds_of
from benchmarks.gpu_train import easy_batch
from benchmarks.lone_worker import changed
from benchmarks.step_record import OUT_OF_MEMORY
from benchmarks.words import count, run_script
from models.sampling import draw
from models.trainable import TrainableModel
from pipeline.config import Config
from pipeline.evaluate import outputs_of
from pipeline.precision import autocast, on_device
from pipeline.presets import preset_named

EVALUATIONS = 5


def drawing_seconds(config: Config, model: TrainableModel, device: torch.device) -> float:
    """Seconds of drawing a batch."""
    size, count = config.data.image_size, config.train.batch_size
    labels = torch.zeros(count, dtype=torch.int64, device=device) if model.reads_labels else None

    def batch_drawn() -> None:
        with autocast(config, device):
            draw(model, height=size, width=size, seeds=range(count), condition=labels)  # type: ignore[arg-type]

    return [seconds_of(batch_drawn, device) for _ in range(2)][-1]


@torch.no_grad()
def evaluation_seconds(config: Config, model: TrainableModel, device: torch.device) -> float:
    """Seconds of evaluating a batch, the mean of some."""
    batch = easy_batch(config)

    def batches_evaluated() -> None:
        for _ in range(EVALUATIONS):
            outputs, images, labels = outputs_of(config, model, batch, device, with_labels=True)
            model.losses(outputs, images, labels).sum()

    return [seconds_of(batches_evaluated, device) for _ in range(2)][-1] / EVALUATIONS


def row(
    seconds: Callable[[Config, TrainableModel, torch.device], float],
    config: Config,
    model: TrainableModel,
    device: torch.device,
    peak: float,
) -> str:
    """Seconds, images/s, TFLOP/s and share of the peak as cells of the table, or that memory is out."""
    size, batch = config.data.image_size, config.train.batch_size
    free_memory(device)
    try:
        taken = seconds(config, model, device)
    except torch.OutOfMemoryError:
        return f"{OUT_OF_MEMORY} | | |"
    rate = model.flops(size, size) * batch / taken / 1e12
    return f"{taken:.3f} | {batch / taken:,.2f} | {rate:.3f} | {rate / peak:.2%}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["cifar10", "imagenet32"], metavar="PRESET")
    parser.add_argument("--batch", type=count, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--size", type=count, help="side of the images, in place of the preset's")
    return parser.parse_intermixed_args(words)


def main() -> None:
    """Print the table."""
    words = arguments()
    configs = [preset_named(preset).config for preset in words.presets]
    device = device_of(words.device)
    peak = matmul_peak(device, getattr(torch, words.precision))
    print(f"{device_name(device)}, torch {torch.__version__}, {words.precision}, matmul peak {peak:.2f} TFLOP/s")
    print("| preset | batch | | seconds | images/s | TFLOP/s | share of the peak |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for preset in configs:
        size = words.size or preset.data.image_size
        torch.manual_seed(0)
        model = on_device(preset.build_model(), device).eval()
        for batch in words.batch:
            config = changed(
                preset,
                data={"image_size": size},
                train={"batch_size": batch},
                run={"precision": words.precision},
                cluster={"num_workers": 1},
            )
            for what, seconds in (("drawn", drawing_seconds), ("evaluated", evaluation_seconds)):
                figures = row(seconds, config, model, device, peak)
                print(f"| {preset.preset} | {batch} | {what} | {figures} |", flush=True)


if __name__ == "__main__":
    run_script(main)
