"""Images/s of the incremental sampler on a GPU, for the presets at the papers' sizes, with random weights.

    python -m benchmarks.gpu_sampling [PRESET ...] [--batch 1 16 64 256 1024] [--device cuda] [--precision bfloat16]

Weights don't change the time, so none are loaded. Each batch is drawn once to warm up and once timed, from the seeds to
the images; the FLOPs are one forward pass an image by the docstring's formula, the peak a bfloat16 matmul's of the same
run. `--device cpu --batch 1 --size 8` tries the script without a GPU.
"""

import argparse

import torch

from benchmarks.device import device_name, matmul_peak, seconds_of
from models.sampling import draw
from pipeline.config import Config
from pipeline.precision import on_device
from pipeline.presets import preset_named


def seconds(config: Config, batch: int, size: int, device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """Seconds of drawing a batch, and the FLOPs of a forward pass an image."""
    torch.manual_seed(0)
    model = on_device(config.build_model(), device).eval()
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if model.reads_labels else None
    size = size or config.data.image_size

    def batch_drawn() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            draw(model, height=size, width=size, seeds=range(batch), condition=labels)  # type: ignore[arg-type]

    taken = [seconds_of(batch_drawn, device) for _ in range(2)][-1]
    return taken, model.flops(size, size)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["cifar10", "imagenet32"], metavar="PRESET")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--size", type=int, default=0, help="side of the images; 0: the preset's")
    return parser.parse_intermixed_args(words)


def main() -> None:
    """Print the table."""
    words = arguments()
    configs = [preset_named(preset).config for preset in words.presets]
    device, dtype = torch.device(words.device), getattr(torch, words.precision)
    peak = matmul_peak(device, dtype)
    print(f"{device_name(device)}, torch {torch.__version__}, {words.precision}, matmul peak {peak:.2f} TFLOP/s")
    print("| preset | batch | seconds | images/s | TFLOP/s | share of the peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for config in configs:
        for batch in words.batch:
            taken, flops = seconds(config, batch, words.size, device, dtype)
            rate = flops * batch / taken / 1e12
            print(
                f"| {config.preset} | {batch} | {taken:.2f} | {batch / taken:.2f} | {rate:.3f} | {rate / peak:.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
