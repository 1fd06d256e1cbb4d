"""The rows of `benchmarks.gpu_train`: kept as they come, and as a table."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import copy_peak, device_name, matmul_peak
from pipeline.errors import UserError
from pipeline.storage import write

OUT_OF_MEMORY = "out of memory"
PAPER_IMAGES = 200_000 * 128
FIRST_STEPS = 20
LAST_OF_THEM = 5
"""Those whose mean loss is told."""


class Record:
    """The rows of OUT/train.json, written as they come; a key that is there isn't measured again."""

    def __init__(self, out: Path, minutes: float) -> None:
        self._file, self._until = out / "train.json", time.monotonic() + 60 * minutes
        self.values: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def put(self, key: str, value: Any) -> None:
        """Keep a value."""
        self.values[key] = value
        write(str(self._file), json.dumps(self.values, indent=1).encode())

    @property
    def is_over(self) -> bool:
        """Whether the minutes of this call are over."""
        return time.monotonic() >= self._until

    @property
    def peak(self) -> float:
        """The matmul peak of the device in TFLOP/s."""
        return float(self.values["device"]["matmul_tflops"])


def begun(out: Path, minutes: float, models: dict[str, Any], device: torch.device) -> Record:
    """The rows of OUT, before them the device, its peaks, and the models: how presets are changed, and whether small.

    Raises:
        UserError: they were measured of other models, or on another device.
    """
    record, found = Record(out, minutes), models | {"name": device_name(device), "torch": torch.__version__}
    if "device" not in record.values:
        peaks = {"matmul_tflops": matmul_peak(device, torch.bfloat16), "copy_tbps": copy_peak(device)}
        record.put("device", found | peaks)
    kept = {key: record.values["device"][key] for key in found}
    if kept != found:
        was, now = _in_words(kept), _in_words(found)
        raise UserError(f"--out {out}: train.json has rows of {was}, not of {now}; give another folder")
    return record


def _in_words(found: dict[str, Any]) -> str:
    presets = " ".join(found["changes"]) or "unchanged presets"
    return f"{presets}{', --small' if found['small'] else ''}, on {found['name']} by torch {found['torch']}"


def in_short(figures: dict[str, Any], peak: float) -> str:
    """A row in a few words."""
    if "error" in figures:
        return str(figures["error"])
    rate = f"{figures['images_per_second']:.1f} images/s, {figures['tflops'] / peak:.1%} of the peak"
    return f"{rate}, loss {figures['loss']:.4f}, {figures['seconds_of_first_steps']:.0f} s of first steps"


def table(record: Record) -> str:
    """The rows as Markdown."""
    peak, changes = record.peak, record.values["device"]["changes"]
    lines = [f"With {' '.join(changes)}:", ""] if changes else []
    lines += [
        "| preset | images a step | variant | images/s | TFLOP/s | share of the peak | GB | step, ms | host, ms "
        "| 200K x 128 images, hours "
        f"| loss of steps {FIRST_STEPS - LAST_OF_THEM + 1} to {FIRST_STEPS} |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, row in record.values.items():
        if key.count("/") != 2 or key.endswith("/stream"):
            continue
        start = f"| {' | '.join(key.split('/'))} |"
        if "error" in row:
            lines.append(f"{start} {row['error']} | | | | | | | |")
            continue
        memory = "" if row["gigabytes"] is None else f"{row['gigabytes']:.1f}"
        hours = PAPER_IMAGES / row["images_per_second"] / 3600
        lines.append(
            f"{start} {row['images_per_second']:,.1f} | {row['tflops']:.3f} | {row['tflops'] / peak:.1%} | {memory} | "
            f"{row['milliseconds_a_step']:,.1f} | {row['host_milliseconds']:,.1f} | {hours:,.1f} | {row['loss']:.4f} |"
        )
    for key, row in record.values.items():
        if key.endswith("/profile") and "error" not in row:
            groups = row["milliseconds_by_group"]
            lines += ["", f"{key}, milliseconds a step: {', '.join(f'{name} {ms:.2f}' for name, ms in groups.items())}"]
        if key.endswith("/stream"):
            rate, wait = f"{row['images_per_second']:,.1f} images/s", f"data wait {row['data_wait_fraction']:.1%}"
            lines += ["", f"{key}: {rate}, {wait}, host {row['host_milliseconds']:,.1f} ms a step"]
    return "\n".join(lines)
