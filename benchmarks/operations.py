"""Where a step's time goes: the profiler's kernels (on a CPU its operators) gathered by what they do."""

import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.device import synchronize

GROUPS = {
    "optimiser": r"adam|multi_tensor|foreach|lerp|lpnorm",
    "dropout": r"dropout|philox|bernoulli|rand|seed",
    "loss": r"softmax|gather|scatter|nll|cross_entropy|crossentropy",
    "gate": r"tanh|sigmoid|_gate",
    "convolution": r"conv|gemm|xmma|cutlass|nvjet|cudnn|sm80_|sm90_|fprop|wgrad|dgrad|::mm\b|addmm|mkldnn",
    "copies": r"memcpy|memset|copy|clone|::cat\b|catarray|pad|convert|fill|zero_",
    "reductions": r"reduce|::sum\b|triton_red|triton_per|norm",
    "elementwise": r"elementwise|triton_poi|::add|::mul|::div|::sub|relu|threshold",
}
"""The first that matches counts. Fused kernels carry the names of what they fuse, so a gate fused with its sum is the
gate, and a cross entropy fused with the conversion of the logits the loss."""


def group_of(name: str) -> str:
    """What the kernel or operator of the name does."""
    lowered = name.lower()
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, lowered)), "other")


def time_by_group(step: Callable[[], object], steps: int, device: torch.device) -> tuple[dict[str, float], list[str]]:
    """Milliseconds a step by group, largest first, and the ten longest kernels as "milliseconds  name"."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        synchronize(device)
    by_group: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.is_user_annotation:  # a stretch of time around kernels that are counted themselves
            continue
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if is_kernel == on_gpu and microseconds:
            by_group[group_of(event.key)] += microseconds / 1e3 / steps
            by_name[event.key] += microseconds / 1e3 / steps
    return dict(by_group.most_common()), [f"{taken:.3f}  {name[:110]}" for name, taken in by_name.most_common(10)]
