"""A training step on a GPU: images/s, TFLOP/s, share of the matmul peak, memory, and where the time goes.

    python -m benchmarks.gpu_train [PRESET ...] [KEY=VALUE ...] [--at 128] [--batches 64 128 ...] [--minutes 9]
        [--out gpu-figures]

The step is the training loop's own (`pipeline.learner.Learner.advance`), on flat squares of dark colours in images of
the preset's size; the loss of the first 20 steps' last five says whether a variant trains as the others do. Every
variant is tried at `--at` images a step; the best of them at every size of `--batches` until memory is out, and
profiled. The host's milliseconds are what it takes to give an idle device a step's work: where they come near the
step's, the host bounds it. FLOPs are those of the models' docstrings, three times the forward pass; the peak is a
bfloat16 matmul's in the same run. Rows are written to OUT/train.json as they come, and the same command goes on after
the last one; a size that doesn't fit is a row, too. Words like model.kernel_size=5 change the presets; such rows want
an OUT of their own, as those of another device or torch do. `--data PRESET=FOLDER` feeds the step from prepared
shards, too, and tells the share of time waited for data and the host's part beside the loader. `--device cpu --small`
runs it all in seconds on a CPU, whose figures mean nothing.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.device import device_of, free_memory, synchronize
from benchmarks.lone_worker import LoneWorker, changed, changed_presets, pass_first_epoch
from benchmarks.operations import time_by_group
from benchmarks.step_record import FIRST_STEPS, LAST_OF_THEM, OUT_OF_MEMORY, Record, begun, in_short, table
from benchmarks.words import count, positive, run_script
from pipeline.config import Config
from pipeline.cost import training_flops
from pipeline.errors import UserError
from pipeline.evaluate import units
from pipeline.learner import Learner
from pipeline.manifest import Manifest, load_manifest
from pipeline.storage import write
from pipeline.stream import Batch

DEFAULT_PRESETS = ["cifar10", "imagenet32", "imagenet64"]
HOST_SECONDS = 1.0
SPREAD = 0.02
"""By how much two measurements of one variant differ, as a share: what is no farther apart counts as equal."""

SMALL_SIZE = 8
SQUARES = 4
"""A side of an image."""
SMALL = {"num_layers": 2, "num_filters": 12, "head_filters": 12}


@dataclass(frozen=True)
class Variant:
    """How a step is run: as `jobs.train` does, or what of our own choices is left out, one at a time."""

    compile: str = ""
    """run.compile; "" is what the preset says."""
    channels_last: bool = True
    fused: bool = True
    muon: bool = True


VARIANTS = {
    "default": Variant(),
    "compiled": Variant(compile="on"),
    "eager": Variant(compile="off"),
    "reduce-overhead": Variant(compile="reduce-overhead"),
    "max-autotune": Variant(compile="max-autotune"),
    "contiguous": Variant(channels_last=False),
    "plain-adamw": Variant(fused=False),
    "without-muon": Variant(muon=False),
    "eager-contiguous-plain": Variant("off", channels_last=False, fused=False),
}
QUICK = [name for name in VARIANTS if name != "max-autotune"]
"""Those that don't take minutes to compile."""


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(), *inputs[1:])


def learner_of(config: Config, variant: Variant, device: torch.device, manifest: Manifest | None = None) -> Learner:
    """The learner as `jobs.train` makes it, but for what the variant leaves out."""
    rate = config.train.muon_learning_rate if variant.muon else 0.0
    training = {"muon_learning_rate": rate, "warmup_steps": FIRST_STEPS}
    config = changed(config, run={"compile": variant.compile or config.run.compile}, train=training)
    learner = Learner(config, LoneWorker(device), manifest or _no_manifest(config))
    if not variant.channels_last:
        learner.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        learner.model.register_forward_pre_hook(_contiguous)
    for group in learner.optimizer.param_groups:
        group["fused"] = variant.fused
    learner.restore()
    return learner


def _no_manifest(config: Config) -> Manifest:
    data = config.data
    shape = (data.channels, data.image_size, data.image_size)
    return Manifest(
        name="random", version="random", split="train", shape=shape, levels=data.levels, resize="none", classes=(),
        prepare_seed=0, shards=(),
    )  # fmt: skip


def easy_batch(config: Config) -> Batch:
    """Images that a model learns in a few steps, flat squares of dark colours, and labels: in the host's memory."""
    count, data = config.train.batch_size, config.data
    dark = max(1, data.levels // 8)
    colours = torch.randint(0, dark, (count, data.channels, SQUARES, SQUARES), dtype=torch.uint8)
    square = torch.arange(data.image_size) * SQUARES // data.image_size
    images = colours[:, :, square[:, None], square]
    return Batch(images, torch.randint(0, data.num_classes, (count,)), [], [count])


def measure(config: Config, variant: Variant, device: torch.device, seconds: float, profiled: bool) -> dict[str, Any]:
    """Figures of a variant at the configuration's batch size; {"error": ...} where memory is out."""
    free_memory(device)
    try:
        return _measure(config, variant, device, seconds, profiled)
    except torch.OutOfMemoryError:
        return {"error": OUT_OF_MEMORY}


def _measure(config: Config, variant: Variant, device: torch.device, seconds: float, profiled: bool) -> dict[str, Any]:
    torch.manual_seed(config.train.seed)
    learner, batches = learner_of(config, variant, device), [easy_batch(config) for _ in range(FIRST_STEPS)]
    started = time.perf_counter()
    losses = [learner.advance(batch)[0] for batch in batches]
    synchronize(device)
    first_steps = time.perf_counter() - started
    last = torch.stack(losses[-LAST_OF_THEM:]).mean().item()
    started, steps, again = time.perf_counter(), 0, itertools.cycle(batches)
    while time.perf_counter() - started < seconds or not steps:
        for _ in range(5 if device.type == "cuda" else 1):
            learner.advance(next(again))
            steps += 1
        synchronize(device)
    taken = time.perf_counter() - started
    host = host_milliseconds(lambda: learner.advance(next(again)), device)
    learner.require_finite()
    rate = steps * config.train.batch_size / taken
    figures: dict[str, Any] = {
        "images_per_second": rate,
        "tflops": rate * training_flops(config) / 1e12,
        "milliseconds_a_step": 1e3 * taken / steps,
        "host_milliseconds": host,
        "gigabytes": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "seconds_of_first_steps": first_steps,
        "loss": last / (config.train.batch_size * units(learner.model.measure, config.dims)),
    }
    if profiled:
        groups, kernels = time_by_group(lambda: learner.advance(next(again)), 3, device)
        figures |= {"milliseconds_by_group": groups, "longest_kernels": kernels}
    return figures


def host_milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """What the host takes to give an idle device the work of a step, on the mean; on a CPU, the work is in it."""
    taken, steps, begun = 0.0, 0, time.perf_counter()
    while time.perf_counter() - begun < HOST_SECONDS or not steps:
        synchronize(device)
        started = time.perf_counter()
        step()
        taken += time.perf_counter() - started
        steps += 1
    synchronize(device)
    return 1e3 * taken / steps


def measure_stream(config: Config, variant: Variant, device: torch.device, seconds: float) -> dict[str, Any]:
    """Images/s, share of the time waited for data, and the host's part, where the step is fed from prepared shards."""
    free_memory(device)
    learner = learner_of(config, variant, device, load_manifest(config, config.data.train_split))
    with learner.stream() as stream:
        pass_first_epoch(stream)
        for _ in range(3):
            learner.advance(next(stream))
        synchronize(device)
        waited, started, steps = stream.seconds_waited, time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            learner.advance(next(stream))
            steps += 1
        synchronize(device)
        taken, waited = time.perf_counter() - started, stream.seconds_waited - waited
        host = host_milliseconds(lambda: learner.advance(next(stream)), device)
    rate = steps * config.train.batch_size / taken
    return {"images_per_second": rate, "data_wait_fraction": waited / taken, "host_milliseconds": host}


def row(record: Record, config: Config, name: str, words: argparse.Namespace, profiled: bool = False) -> Any:
    """The figures of a variant, measured unless they are there or the call's minutes are over; then None."""
    key = f"{config.preset}/{config.train.batch_size}/{name}{'/profile' if profiled else ''}"
    if key not in record.values and not record.is_over:
        figures = measure(config, VARIANTS[name], torch.device(words.device), words.seconds, profiled)
        record.put(key, figures | {"variant": asdict(VARIANTS[name])})
        print(key, in_short(figures, record.peak), flush=True)
    return record.values.get(key)


def different_variants(config: Config, names: list[str]) -> list[str]:
    """The first name of each variant that differs from the others for the preset; "default" where none is left."""
    preset_says = "on" if config.run.compile == "auto" else config.run.compile
    first: dict[Variant, str] = {}
    for name in names:
        variant = VARIANTS[name]
        if variant.muon or config.train.muon_learning_rate:
            first.setdefault(replace(variant, compile=variant.compile or preset_says), name)
    return list(first.values()) or ["default"]


def best_of(rates: dict[str, float]) -> str:
    """The first variant that is as fast as the fastest; those without Muon, which is another training, come last."""
    same_training = [name for name in rates if VARIANTS[name].muon] or list(rates)
    fastest = max(rates[name] for name in same_training)
    return next(name for name in same_training if rates[name] >= (1.0 - SPREAD) * fastest)


def measure_preset(record: Record, config: Config, words: argparse.Namespace, shards: str) -> None:
    """All variants at one size, the best at all sizes, its profile and the last one's, and its rate from the shards."""
    at = changed(config, train={"batch_size": words.at})
    variants = different_variants(config, words.variants)
    figures = {name: row(record, at, name, words) or {} for name in variants}
    best = best_of({name: found.get("images_per_second", 0.0) for name, found in figures.items()})
    for size in words.batches:
        found = row(record, changed(config, train={"batch_size": size}), best, words)
        if found is None or "error" in found:
            break
    for name in dict.fromkeys([best, variants[-1]]):
        row(record, at, name, words, profiled=True)
    key = f"{config.preset}/{words.at}/stream"
    if shards and key not in record.values and not record.is_over:
        fed = changed(at, data={"url": shards})
        record.put(key, measure_stream(fed, VARIANTS[best], torch.device(words.device), words.seconds))


def folders_of_shards(pairs: list[str], configs: list[Config]) -> dict[str, str]:
    """The folder of prepared shards of each preset that has one.

    Raises:
        UserError: a word isn't PRESET=FOLDER of a preset that is measured, or the folder has no such shards.
    """
    measured, folders = {config.preset: config for config in configs}, {}
    for pair in pairs:
        preset, _, folder = pair.partition("=")
        if preset not in measured or not folder:
            raise UserError(f"--data {pair}: give PRESET=FOLDER, the preset one of {', '.join(measured)}")
        config = changed(measured[preset], data={"url": folder})
        load_manifest(config, config.data.train_split)
        folders[preset] = folder
    return folders


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PRESET or KEY=VALUE")
    parser.add_argument("--batches", type=count, nargs="+", default=[16, 32, 64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--at", type=count, default=128, help="images a step at which variants are compared")
    parser.add_argument("--variants", nargs="+", default=QUICK, choices=VARIANTS)
    parser.add_argument("--seconds", type=positive, default=5.0, help="for which each rate is measured")
    parser.add_argument("--minutes", type=positive, default=9.0, help="after which no further row is begun")
    parser.add_argument("--data", nargs="*", default=[], metavar="PRESET=FOLDER", help="of prepared shards")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny models on 8x8 images, to try the script")
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"))
    return parser.parse_intermixed_args(words)


def main() -> None:
    """Measure what is missing and print the table."""
    words = arguments()
    device = device_of(words.device)
    changes, configs = changed_presets(words.words, DEFAULT_PRESETS)
    small = {"model": SMALL, "data": {"image_size": SMALL_SIZE}} if words.small else {}
    where = {"run": {"url": str(words.out / "none")}, "cluster": {"num_workers": 1}}
    configs = [changed(config, **where, **small) for config in configs]
    folders = folders_of_shards(words.data, configs)
    record = begun(words.out, words.minutes, {"changes": changes, "small": words.small}, device)
    print(record.values["device"], flush=True)
    for config in configs:
        measure_preset(record, config, words, folders.get(config.preset, ""))
    print(table(record))
    write(str(words.out / "train.md"), (table(record) + "\n").encode())


if __name__ == "__main__":
    run_script(main)
