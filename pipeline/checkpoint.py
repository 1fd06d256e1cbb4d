"""Checkpoints: a folder a step whose checkpoint.json, written last, names every other file with its sha256."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import Config, changed_result_keys
from pipeline.errors import UserError
from pipeline.storage import join, names_below, read, write

STATE_NAME = "checkpoint.json"
WEIGHTS_NAME = "weights.safetensors"
AVERAGED_NAME = "averaged.safetensors"
OPTIMIZER_NAME = "optimizer.pt"
FOLDER = re.compile(r"^(step-\d{9})/" + re.escape(STATE_NAME) + "$")


class State(BaseModel):
    """Everything of a checkpoint that is no tensor.

    The stream's position is `images_seen`. Random numbers are those of (train.seed, step, rank): every step seeds
    torch's generator anew, so their state is `random_seed` and `step`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    images_seen: int
    random_seed: int
    averaged_updates: int
    config: dict[str, Any]
    manifest_digest: str
    undelivered: list[dict[str, Any]]
    """Tracking entries that MLflow had not taken yet."""
    files: dict[str, str] = {}
    """sha256 of every other file of the folder."""


class Checkpoint(BaseModel):
    """A sound checkpoint: its URL, its state, and a local copy of its files."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    url: str
    state: State
    folder: Path

    @property
    def config(self) -> Config:
        """The configuration that the checkpoint was trained with."""
        return Config.model_validate(self.state.config)

    def weights(self, *, averaged: bool) -> dict[str, Tensor]:
        """The model's parameters by name, averaged or as the optimiser left them."""
        return load_file(self.folder / (AVERAGED_NAME if averaged else WEIGHTS_NAME))

    def optimizer(self) -> dict[str, Any]:
        """The optimiser's state dict."""
        state: dict[str, Any] = torch.load(self.folder / OPTIMIZER_NAME, weights_only=True)
        return state


def folder_name(step: int) -> str:
    """Name of a step's checkpoint in the run's folder."""
    return f"step-{step:09d}"


def write_folder(
    folder: Path, state: State, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint's files into a local folder, checkpoint.json last."""
    save_file(_plain(model), folder / WEIGHTS_NAME)
    save_file(_plain(averaged), folder / AVERAGED_NAME)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER_NAME)
    files = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
    (folder / STATE_NAME).write_text(state.model_copy(update={"files": files}).model_dump_json(indent=1))


def upload(folder: Path, url: str) -> None:
    """Copy a checkpoint's files to the URL, checkpoint.json last: without it the rest is no checkpoint."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == STATE_NAME, name))
    for name in names:
        write(join(url, name), (folder / name).read_bytes())


def steps_below(run_url: str) -> list[str]:
    """Names of the run's checkpoint folders that have a checkpoint.json, newest first."""
    matches = [FOLDER.match(name) for name in names_below(run_url)]
    return sorted((match.group(1) for match in matches if match), reverse=True)


@contextmanager
def newest_sound(run_url: str) -> Iterator[Checkpoint | None]:
    """The run's newest checkpoint whose files are all what checkpoint.json says; None where there is none.

    A torn checkpoint is told and passed over for the one before it.
    """
    with tempfile.TemporaryDirectory(prefix="pixelcnn-checkpoint-") as temporary:
        for name in steps_below(run_url):
            checkpoint = _download(join(run_url, name), Path(temporary))
            if checkpoint:
                yield checkpoint
                return
        yield None


def require_same_result(checkpoint: Checkpoint, config: Config, manifest_digest: str) -> None:
    """Raise UserError unless the configuration and the data are those that the checkpoint was trained with."""
    changed = changed_result_keys(checkpoint.config, config)
    if changed:
        raise UserError(
            f"run.name {config.run.name}: its checkpoint {checkpoint.url} was trained with another configuration: "
            f"{', '.join(changed)}; use the old values, or another --run.name for a new run"
        )
    if checkpoint.state.manifest_digest != manifest_digest:
        raise UserError(
            f"data.url {config.data.url}: the manifest's digest {manifest_digest} is not the "
            f"{checkpoint.state.manifest_digest} of {checkpoint.url}; give the data of then, or another --run.name"
        )


def _download(url: str, folder: Path) -> Checkpoint | None:
    state = State.model_validate(json.loads(read(join(url, STATE_NAME))))
    names = set(names_below(url))
    for name, digest in state.files.items():
        content = read(join(url, name)) if name in names else b""
        if _sha256(content) != digest:
            print(f"warning: {join(url, name)} is torn (wrong sha256); the checkpoint before it is taken", flush=True)
            return None
        (folder / name).write_bytes(content)
    checkpoint = Checkpoint(url=url, state=state, folder=folder)
    try:
        checkpoint.weights(averaged=True)
    except SafetensorError as error:
        raise UserError(
            f"{url}: its weights can't be read ({error}); remove this checkpoint to go on from the one before"
        ) from error
    return checkpoint


def _plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
