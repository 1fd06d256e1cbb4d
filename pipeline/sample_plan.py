"""What is drawn and how the grid shows it: classes in rows, or images beside what their encoder lets be redrawn."""

import io
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from models.autoencoder import MSEAutoEncoder, PixelCNNAutoEncoder
from models.autoregressive import AutoregressiveModel
from models.sampling import Known
from models.trainable import TrainableModel
from pipeline.checkpoint import newest_sound
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import Manifest, split_url
from pipeline.shards import decode_png, fetch
from pipeline.storage import read
from pipeline.worker import Worker


@dataclass(frozen=True)
class Plan:
    """Images to draw, `columns` a row, each with its seed and condition, and what stands beside them in each row."""

    density: AutoregressiveModel | None
    seeds: list[int]
    columns: int
    condition: Tensor | None = None
    before: list[Tensor] = field(default_factory=list)
    """Columns of shown images, uint8 [row c h w], left of the drawn ones."""
    after: list[Tensor] = field(default_factory=list)
    """The same on their right."""
    known: Known | None = None
    """What of the drawn images is given."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """What goes with the drawn images into samples.npz."""

    def drawn_dims(self, dims: int, channels: int) -> int:
        """Sub-pixels of an image that are drawn, of `dims`."""
        return dims if self.known is None else dims - channels * int(self.known.mask[0].sum())

    def rows(self, drawn: UInt8[Tensor, "n c h w"]) -> tuple[UInt8[Tensor, "m c h w"], int]:
        """All images of the grid in reading order, and how many stand in a row."""
        if not self.before and not self.after:
            return drawn, self.columns
        height = len((self.before + self.after)[0])
        inner = list(drawn.unflatten(0, (height, self.columns)).unbind(1)) if self.columns else []
        columns = [*(column.cpu() for column in self.before), *inner, *(column.cpu() for column in self.after)]
        return torch.stack(columns, dim=1).flatten(0, 1), len(columns)


def make_plan(config: Config, model: TrainableModel, manifest: Manifest, worker: Worker, count: int) -> Plan | None:
    """The plan of a grid of `count` drawn images; None for an embedding, which draws nothing.

    With an encoder the rows are full, so fewer may be drawn, but a row at least.

    Raises:
        UserError: sample.mse_run is no run of an MSE auto-encoder of these images, the split has too few images, or
            another field of sample doesn't fit the model.
    """
    require_fitting(config, model)
    columns = config.sample.grid_columns
    rows = max(1, count // columns)
    if isinstance(model, AutoregressiveModel):
        if config.sample.keep_rows:
            return _completions(config, model, manifest, worker, rows)
        return _of_labels(config, model, count, worker)
    if isinstance(model, PixelCNNAutoEncoder):
        if config.sample.vectors:
            return _of_vectors(config, model, worker)
        originals = _one_of_each_class(config, manifest, rows + config.sample.interpolate)[0].to(worker.device)
        if config.sample.interpolate:
            return _interpolations(config, model, originals, columns)
        return _reconstructions(config, model, originals, worker, columns)
    if isinstance(model, MSEAutoEncoder):
        originals = _one_of_each_class(config, manifest, rows)[0].to(worker.device)
        back = model.reconstruct(originals)
        arrays = {"originals": originals.cpu().numpy(), "mse_reconstructions": back.cpu().numpy()}
        return Plan(None, [], 0, before=[originals, back], arrays=arrays)
    return None


def require_fitting(config: Config, model: TrainableModel) -> None:
    """Raise UserError where a field of sample doesn't fit the model, the images or another field."""
    sample, classes = config.sample, config.data.num_classes
    reads_labels = isinstance(model, AutoregressiveModel) and model.reads_labels
    encodes = isinstance(model, PixelCNNAutoEncoder)
    labels, wrong = list(sample.labels), [label for label in sample.labels if not 0 <= label < classes]
    rules = (
        (labels and not reads_labels, f"sample.labels {labels}: the model reads no labels; leave it empty"),
        (wrong, f"sample.labels {wrong}: {config.data.name} has the classes 0 to {classes - 1}"),
        (labels and not sample.conditional, f"sample.labels {labels}: sample.conditional is false; leave one out"),
        (
            labels and sample.keep_rows,
            f"sample.labels {labels}: with sample.keep_rows images are completed by their own labels; leave one out",
        ),
        (
            sample.keep_rows and not isinstance(model, AutoregressiveModel),
            f"sample.keep_rows {sample.keep_rows}: only a density model completes images; set it to 0",
        ),
        (
            sample.keep_rows >= config.data.image_size,
            f"sample.keep_rows {sample.keep_rows}: nothing is left to draw of {config.data.image_size} rows; keep "
            "fewer",
        ),
        (
            sample.vectors and not encodes,
            f"sample.vectors {sample.vectors}: the model is conditioned on no vectors; leave it empty",
        ),
        (
            sample.interpolate and not encodes,
            f"sample.interpolate: model.kind {config.model.kind} has no encoder to interpolate by; leave it out",
        ),
        (sample.interpolate and sample.vectors, "sample.interpolate: sample.vectors are drawn as given; leave one out"),
        (
            sample.mse_run and (not encodes or sample.vectors or sample.interpolate),
            f"sample.mse_run {sample.mse_run}: it stands beside an auto-encoder's reconstructions only; leave it empty",
        ),
    )
    for is_unfit, told in rules:
        if is_unfit:
            raise UserError(told)


def _completions(config: Config, model: AutoregressiveModel, manifest: Manifest, worker: Worker, rows: int) -> Plan:
    """A row an image of the split: its upper rows alone, completions of them, and the whole image."""
    columns, keep = config.sample.grid_columns, config.sample.keep_rows
    originals, labels = _one_of_each_class(config, manifest, rows)
    images = originals.repeat_interleave(columns, 0).to(worker.device)
    mask = torch.zeros(images[:, 0].shape, dtype=torch.bool, device=worker.device)
    mask[:, :keep] = True
    given = originals.clone()
    given[:, :, keep:] = config.data.levels // 2
    labelled = model.reads_labels and config.sample.conditional
    return Plan(
        model,
        [config.sample.seed + index for index in range(len(images))],
        columns,
        condition=labels.repeat_interleave(columns, 0).to(worker.device) if labelled else None,
        before=[given],
        after=[originals],
        arrays={"originals": originals.numpy(), "labels": labels.numpy()},
        known=Known(images, mask),
    )


def _of_vectors(config: Config, model: PixelCNNAutoEncoder, worker: Worker) -> Plan:
    """A row of draws for each h of sample.vectors."""
    url, size = config.sample.vectors, model.decoder.body.condition_size
    try:
        vectors = np.load(io.BytesIO(read(url)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"sample.vectors {url}: not a readable .npy array ({error}); write it by numpy.save") from error
    if vectors.ndim != 2 or vectors.shape[1] != size or not len(vectors) or not np.isfinite(vectors).all():
        raise UserError(
            f"sample.vectors {url}: an array of shape {list(vectors.shape)}; the model wants finite numbers [n, {size}]"
        )
    condition = torch.from_numpy(vectors.astype(np.float32)).repeat_interleave(config.sample.grid_columns, 0)
    seeds = [config.sample.seed + index for index in range(len(condition))]
    return Plan(
        model.decoder,
        seeds,
        config.sample.grid_columns,
        condition=condition.to(worker.device),
        arrays={"vectors": condition.numpy()},
    )


def _of_labels(config: Config, model: AutoregressiveModel, count: int, worker: Worker) -> Plan:
    """A class a row, and again from the first class on; without labels just so many images."""
    seeds = [config.sample.seed + index for index in range(count)]
    if not model.reads_labels or not config.sample.conditional:
        return Plan(model, seeds, config.sample.grid_columns)
    classes = torch.tensor(config.sample.labels or range(config.data.num_classes))
    labels = classes[torch.arange(count) // config.sample.grid_columns % len(classes)]
    arrays = {"labels": labels.numpy()}
    return Plan(model, seeds, config.sample.grid_columns, condition=labels.to(worker.device), arrays=arrays)


def _reconstructions(
    config: Config, model: PixelCNNAutoEncoder, originals: Tensor, worker: Worker, columns: int
) -> Plan:
    """The paper's Fig. 6: the original, its MSE reconstruction if there is a run of one, and draws from its h."""
    before, arrays = [originals], {"originals": originals.cpu().numpy()}
    if config.sample.mse_run:
        before.append(_mse_model(config, worker).reconstruct(originals))
        arrays["mse_reconstructions"] = before[1].cpu().numpy()
    with torch.no_grad():
        condition = model.encode(originals).repeat_interleave(columns, 0)
    seeds = [config.sample.seed + index for index in range(len(condition))]
    return Plan(model.decoder, seeds, columns, condition=condition, before=before, arrays=arrays)


def _interpolations(config: Config, model: PixelCNNAutoEncoder, originals: Tensor, columns: int) -> Plan:
    """The paper's Fig. 5: from each original's h to the next one's in a row, all of it from the same random numbers."""
    shares = torch.linspace(0.0, 1.0, columns, device=originals.device)[None, :, None]
    with torch.no_grad():
        codes = model.encode(originals)
    condition = torch.lerp(codes[:-1, None], codes[1:, None], shares).flatten(0, 1)
    seeds = [config.sample.seed + index // columns for index in range(len(condition))]
    arrays = {"originals": originals.cpu().numpy(), "vectors": condition.cpu().numpy()}
    return Plan(
        model.decoder,
        seeds,
        columns,
        condition=condition,
        before=[originals[:-1]],
        after=[originals[1:]],
        arrays=arrays,
    )


def _one_of_each_class(
    config: Config, manifest: Manifest, count: int
) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """`count` images of the split's first shard and their labels, the first of each class in turn, then the second.

    Raises:
        UserError: the shard holds fewer.
    """
    records = fetch(split_url(config, manifest.split), manifest.shards[0])
    if len(records) < count:
        raise UserError(
            f"{manifest.split}: the first shard has {len(records)} images, {count} rows were asked for; "
            "lower sample.count"
        )
    met: dict[int, int] = {}
    ranked = []
    for record in records:
        met[record.label] = met.get(record.label, 0) + 1
        ranked.append((met[record.label], record.label, record))
    ranked.sort(key=lambda one: one[:2])
    chosen = [record for _, _, record in ranked[:count]]
    images = np.stack([decode_png(record, manifest.shape) for record in chosen])
    return torch.from_numpy(images), torch.tensor([record.label for record in chosen])


def _mse_model(config: Config, worker: Worker) -> MSEAutoEncoder:
    """The MSE auto-encoder of sample.mse_run with its averaged weights."""
    with newest_sound(config.sample.mse_run) as checkpoint:
        if checkpoint is None:
            raise UserError(
                f"sample.mse_run {config.sample.mse_run}: no checkpoint; train an MSE auto-encoder first, or correct it"
            )
        if checkpoint.config.image_shape != config.image_shape:
            raise UserError(
                f"sample.mse_run {config.sample.mse_run} was trained on images of {checkpoint.config.image_shape}, "
                f"these are of {config.image_shape}: name a run on the same data"
            )
        model = checkpoint.config.build_model()
        if not isinstance(model, MSEAutoEncoder):
            raise UserError(
                f"sample.mse_run {config.sample.mse_run} trained a {checkpoint.config.model.kind}: "
                "name the run of an mse-autoencoder"
            )
        model.load_state_dict(checkpoint.weights(averaged=True))
    return model.to(worker.device).eval()
