"""What the figures of a device stand on: its name, its clock, its memory, and its measured peaks."""

import gc
import time
from collections.abc import Callable

import torch

from pipeline.errors import UserError

MATMUL_SIZES = {"cuda": 8192, "cpu": 256}
COPY_BYTES = {"cuda": 2**32, "cpu": 2**26}


def device_of(name: str) -> torch.device:
    """The device of a script's --device.

    Raises:
        UserError: PyTorch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} sees no GPU on this machine; give --device cpu to try the "
            "script, as its --help says, or run it on a machine with a GPU and its driver"
        )
    return torch.device(name)


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more, compiled steps included, and measure the most that is used anew."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds from the device at rest to the device at rest after the work."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def matmul_peak(device: torch.device, dtype: torch.dtype, times: int = 10) -> float:
    """TFLOP/s of square matrix products of random numbers, the best of some."""
    size = MATMUL_SIZES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds_of(lambda: left @ right, device) for _ in range(times))
    return 2 * size**3 / best / 1e12


def copy_peak(device: torch.device, times: int = 10) -> float:
    """TB/s of a copy within the device's memory, bytes read and written both counted, the best of some."""
    source = torch.randint(0, 256, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(seconds_of(lambda: target.copy_(source), device) for _ in range(times))
    return 2 * source.numel() / best / 1e12


def device_name(device: torch.device) -> str:
    """The card's name, "CPU" for none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
