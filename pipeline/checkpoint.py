"""Checkpoints: a folder a step whose checkpoint.json, written last, names every other file with its sha256."""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.config import Config, changed_result_keys
from pipeline.errors import UserError
from pipeline.storage import delete, delete_below, join, names_below, read, write

STATE_NAME = "checkpoint.json"
WEIGHTS_NAME = "weights.safetensors"
AVERAGED_NAME = "averaged.safetensors"
OPTIMIZER_NAME = "optimizer.pt"
FILE = re.compile(r"^(step-\d{9})/([^/]+)$")


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
    val_measure: float | None
    """The measure on data.val_split, the lower the better, if it was evaluated at this step."""
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


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in host memory: a copy that later steps don't touch."""

    state: State
    weights: dict[str, Tensor]
    averaged: dict[str, Tensor]
    optimizer: dict[str, Any]


def snapshot(state: State, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """Copy everything that a checkpoint holds into host memory; this is what training waits for."""
    return Snapshot(
        state, _in_host(model.state_dict()), _in_host(averaged.state_dict()), _in_host(optimizer.state_dict())
    )


def upload(kept: Snapshot, url: str) -> None:
    """Write a checkpoint's files to the URL, checkpoint.json last: without it the rest is no checkpoint."""
    optimizer = io.BytesIO()
    torch.save(kept.optimizer, optimizer)
    files = {
        WEIGHTS_NAME: save(_contiguous(kept.weights)),
        AVERAGED_NAME: save(_contiguous(kept.averaged)),
        OPTIMIZER_NAME: optimizer.getvalue(),
    }
    state = kept.state.model_copy(update={"files": {name: _sha256(content) for name, content in files.items()}})
    for name, content in files.items():
        write(join(url, name), content)
    write(join(url, STATE_NAME), state.model_dump_json(indent=1).encode())


def newest_config(run_url: str) -> Config | None:
    """The configuration of the run's newest checkpoint, sound or not; None where there is none."""
    state = _newest_state(run_url)
    return Config.model_validate(state.config) if state else None


def adopt(url: str, run_url: str, config: Config) -> None:
    """Have a run go on from another run's checkpoint: it becomes the newest one, as if trained with this configuration.

    Until it is whole the run's own checkpoints stay; what MLflow has not taken of the run's own entries is kept.

    Raises:
        UserError: the other checkpoint's last file is torn.
    """
    own, name = steps_below(run_url), url.rsplit("/", 1)[-1]
    before, state = _newest_state(run_url), _state_at(url)
    if state is None:
        raise UserError(f"{join(url, STATE_NAME)} is torn; run the same command to go on from an earlier checkpoint")
    undelivered = before.undelivered if before else []
    changed = {"config": json.loads(config.model_dump_json()), "undelivered": undelivered}
    state = state.model_copy(update=changed)
    if name in own:
        delete(join(run_url, name, STATE_NAME))
    for file in state.files:
        write(join(run_url, name, file), read(join(url, file)))
    write(join(run_url, name, STATE_NAME), state.model_dump_json(indent=1).encode())
    for later in own:
        if later > name:
            delete(join(run_url, later, STATE_NAME))
            delete_below(join(run_url, later))


def steps_below(run_url: str) -> list[str]:
    """Names of the run's checkpoint folders that have a checkpoint.json, newest first."""
    return sorted((name for name, files in _folders(run_url).items() if STATE_NAME in files), reverse=True)


def last_sound(run_url: str, known: str = "") -> str:
    """Where the run's last checkpoint lies, in words.

    Args:
        run_url: the run's folder.
        known: URL of the last checkpoint that was kept, for storage that can no longer be asked.
    """
    try:
        names = steps_below(run_url)
    except UserError:
        if known:
            return f"the last sound checkpoint is {known}"
        return "a line above that begins with `kept`, if there is one, names the last sound checkpoint"
    return f"the last sound checkpoint is {join(run_url, names[0])}" if names else "there is no checkpoint"


def val_measures(run_url: str) -> dict[str, float]:
    """The val_measure of each of the run's checkpoints that has one, by folder name."""
    states = {name: _state_at(join(run_url, name)) for name in steps_below(run_url)}
    return {name: state.val_measure for name, state in states.items() if state and state.val_measure is not None}


def remove_old(run_url: str, measures: dict[str, float], newest: int, best: int) -> None:
    """Remove all checkpoints but so many newest and those of the lowest measure, and what killed uploads left behind.

    Of a folder checkpoint.json goes first, so that a kill in the middle leaves no checkpoint, rather than a torn one.
    """
    folders = _folders(run_url)
    sound = sorted((name for name, files in folders.items() if STATE_NAME in files), reverse=True)
    measured = sorted((name for name in sound if name in measures), key=lambda name: measures[name])
    kept = {*sound[:newest], *measured[:best]}
    for name, files in folders.items():
        if sound and name < sound[0] and name not in kept:
            if STATE_NAME in files:
                delete(join(run_url, name, STATE_NAME))
            delete_below(join(run_url, name))


def _folders(run_url: str) -> dict[str, list[str]]:
    """Files of each checkpoint folder, whole or not."""
    folders: dict[str, list[str]] = {}
    for path in names_below(run_url):
        match = FILE.match(path)
        if match:
            folders.setdefault(match.group(1), []).append(match.group(2))
    return folders


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
    state = _state_at(url)
    if state is None:
        print(f"warning: {join(url, STATE_NAME)} is torn (no JSON); the checkpoint before it is taken", flush=True)
        return None
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


def _state_at(url: str) -> State | None:
    """What a checkpoint's last file says; None where that is torn.

    Raises:
        UserError: it is whole, but not of the form that this version writes.
    """
    try:
        content = json.loads(read(join(url, STATE_NAME)))
    except ValueError:
        return None
    try:
        return State.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{join(url, STATE_NAME)}: {where}: {first['msg']}; another version of this project wrote it: "
            "use that one, or another --run.name"
        ) from error


def _newest_state(run_url: str) -> State | None:
    states = (_state_at(join(run_url, name)) for name in steps_below(run_url))
    return next((state for state in states if state), None)


def _in_host(state: Any) -> Any:
    """A copy of nested dicts and lists whose tensors lie in host memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)  # strides, too: other ones would round another way
    if isinstance(state, dict):
        return {key: _in_host(value) for key, value in state.items()}
    return [_in_host(value) for value in state] if isinstance(state, list) else state


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
