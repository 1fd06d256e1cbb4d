"""The convolutions and products of a gated layer alone on a GPU, by the number of filters: which widths it likes.

    python -m benchmarks.gpu_convolutions [--filters 192 240 288 336 384] [--kernel 3] [--batch 64] [--size 32]

For each: TFLOP/s forward, of the inputs' gradient and of the weights', in bfloat16 and channels_last, cuDNN's kernels
chosen by trial, as in training. The FLOPs are those of the dense kernels that are run, zeros of the colour masks
included; padding, gates and sums are left out. `--device cpu --batch 1 --size 8` tries the script without a GPU.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.device import device_name, device_of, matmul_peak, seconds_of
from benchmarks.words import count, run_script
from pipeline.errors import UserError

SECONDS = 0.1
Passes = tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor]]
"""Forward, the inputs' gradient, the weights'."""


def convolution(
    batch: int, inputs: int, outputs: int, size: int, kernel: tuple[int, int], device: torch.device
) -> Passes:
    """A convolution over maps that are padded above, and on the left where its kernel has one row."""
    rows, columns = kernel
    reach = columns // 2 if rows > 1 else 0
    height, width = size + rows - 1, size + columns - 1 - 2 * reach
    images, weights = _maps(device, batch, inputs, height, width), _maps(device, outputs, inputs, rows, columns)
    gradient = torch.randn_like(functional.conv2d(images, weights, padding=(0, reach)))

    def gradient_of(index: int) -> Tensor:
        wanted = [index == 0, index == 1, False]
        how = ([1, 1], [0, reach], [1, 1], False, [0, 0], 1)
        made: Tensor = torch.ops.aten.convolution_backward(gradient, images, weights, None, *how, wanted)[index]
        return made

    forward = partial(functional.conv2d, images, weights, padding=(0, reach))
    return forward, partial(gradient_of, 0), partial(gradient_of, 1)


def product(positions: int, inputs: int, outputs: int, device: torch.device) -> Passes:
    """A 1x1 convolution, as the matrix product that it is."""
    features, weights = _matrix(device, positions, inputs), _matrix(device, outputs, inputs)
    gradient = _matrix(device, positions, outputs)
    return lambda: features @ weights.T, lambda: gradient @ weights, lambda: gradient.T @ features


def _maps(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)


def _matrix(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def layer(filters: int, words: argparse.Namespace) -> dict[str, tuple[int, Passes]]:
    """A layer's convolutions: FLOPs of a pass, and the passes."""
    device, size, kernel = torch.device(words.device), words.size, words.kernel
    rows, left, wide = (kernel + 1) // 2, kernel // 2 + 1, 2 * filters
    positions = words.batch * size**2
    kernels = {
        f"vertical {rows}x{kernel}": (filters, wide, rows * kernel),
        f"horizontal 1x{left}": (filters, wide, left),
        "link 1x1": (wide, wide, 1),
        "output 1x1": (filters, filters, 1),
    }
    shapes = [(rows, kernel), (1, left)]
    passes = [convolution(words.batch, filters, wide, size, shape, device) for shape in shapes]
    passes += [product(positions, wide, wide, device), product(positions, filters, filters, device)]
    return {
        name: (2 * positions * inputs * outputs * entries, ways)
        for (name, (inputs, outputs, entries)), ways in zip(kernels.items(), passes, strict=True)
    }


def repeat(work: Callable[[], object], times: int) -> None:
    """Call the work so many times."""
    for _ in range(times):
        work()


def seconds_a_call(work: Callable[[], object], device: torch.device) -> float:
    """Seconds a call of work that is called again and again, after it was tried."""
    calls = 1
    while True:
        taken = seconds_of(partial(repeat, work, calls), device)
        if calls > 1 and (taken >= SECONDS or device.type == "cpu"):
            return taken / calls
        calls *= 2


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=count, nargs="+", default=[192, 240, 288, 336, 384])
    parser.add_argument("--kernel", type=count, default=3, help="n of the n x n and 1 x n convolutions, odd")
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--size", type=count, default=32, help="side of the images")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    return parser.parse_args(words)


def main() -> None:
    """Print the table."""
    words = arguments()
    device = device_of(words.device)
    if words.kernel % 2 == 0:
        raise UserError(f"--kernel {words.kernel}: models have kernels of odd size; give {words.kernel + 1}")
    torch.backends.cudnn.benchmark = True
    peak = matmul_peak(device, torch.bfloat16)
    print(f"{device_name(device)}, torch {torch.__version__}, matmul peak {peak:.1f} TFLOP/s")
    print("| filters | | forward | inputs' gradient | weights' gradient | ms of the three |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for filters in words.filters:
        flops = seconds = 0.0
        for name, (of_a_pass, passes) in layer(filters, words).items():
            taken = [seconds_a_call(one, device) for one in passes]
            flops, seconds = flops + 3 * of_a_pass, seconds + sum(taken)
            rates = " | ".join(f"{of_a_pass / one / 1e12:,.1f}" for one in taken)
            print(f"| {filters} | {name} | {rates} | {1e3 * sum(taken):.3f} |", flush=True)
        rate = flops / seconds / 1e12
        print(
            f"| {filters} | all: {rate:,.1f} TFLOP/s, {rate / peak:.1%} of the peak | | | | {1e3 * seconds:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)
