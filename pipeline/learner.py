"""Model, optimiser, averaged weights and where a run stands: one step, one checkpoint, one return to it."""

import contextlib
import json
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.trainable import TrainableModel
from pipeline.calibration import fit_logit_scale
from pipeline.checkpoint import Snapshot, State, newest_sound, require_same_result, snapshot
from pipeline.config import Config
from pipeline.embedding import load_embedding
from pipeline.errors import DivergedError
from pipeline.evaluate import Measured, units
from pipeline.manifest import Manifest
from pipeline.mlflow_run import Entry
from pipeline.model_config import PortraitModel
from pipeline.optim import Averaged, build_optimizer, set_rates
from pipeline.precision import ModelWithLosses, compiled, is_compiled, on_device
from pipeline.storage import join
from pipeline.stream import Batch, TrainingStream, own_parts
from pipeline.worker import Worker


def run_url_of(config: Config) -> str:
    """Folder of the run's checkpoints."""
    return join(config.run.url, config.run.name)


class Learner:
    """Model, optimiser, averaged weights and where the run stands."""

    def __init__(self, config: Config, worker: Worker, manifest: Manifest) -> None:
        self.config, self.worker, self.manifest = config, worker, manifest
        self.model: TrainableModel = on_device(config.build_model(), worker.device)
        self._parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, config.train)
        self.averaged = Averaged(self.model, config.train.ema_decay)
        self.step = self.images_seen = self.saved_step = 0
        self._parts = list(own_parts(config, worker.rank, worker.world_size))
        self.gradient_norm = torch.zeros((), device=worker.device)
        self._bad_step = torch.zeros((), dtype=torch.int64, device=worker.device)
        self._losses: nn.Module = ModelWithLosses(config, self.model, worker.device)

    @property
    def averaged_model(self) -> TrainableModel:
        """The model with the averaged weights."""
        return cast(TrainableModel, self.averaged.module)

    def restore(self) -> list[Entry]:
        """Go to the newest sound checkpoint, if any, and give the tracking entries that it holds."""
        entries: list[Entry] = []
        with newest_sound(run_url_of(self.config)) as checkpoint:
            if checkpoint:
                require_same_result(checkpoint, self.config, self.manifest.digest)
                self.model.load_state_dict(checkpoint.weights(averaged=False))
                self.averaged.module.load_state_dict(checkpoint.weights(averaged=True))
                self.averaged.n_averaged.fill_(checkpoint.state.averaged_updates)
                self.optimizer.load_state_dict(checkpoint.optimizer())
                self.step, self.images_seen = checkpoint.state.step, checkpoint.state.images_seen
                self.saved_step, entries = self.step, checkpoint.state.undelivered
                if self.worker.rank == 0:
                    print(f"going on from {checkpoint.url}", flush=True)
            elif isinstance(self.config.model, PortraitModel):
                for model in (self.model, self.averaged_model):
                    load_embedding(self.config.model, model)
        self._losses = compiled(self.config, self._losses, self.worker.device)
        if self.worker.world_size > 1:
            # So asked, it never regroups its buckets. Regrouped after the first step, they would round otherwise in a
            # run that goes on, with three workers or more; on GPUs, where bits aren't promised, speed comes first.
            keeps_buckets = self.worker.device.type == "cpu"
            self._losses = DistributedDataParallel(self._losses, find_unused_parameters=keeps_buckets)
        return entries

    def stream(self) -> TrainingStream:
        """The images from where the run stands."""
        return TrainingStream(
            self.config,
            self.manifest,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            images_seen=self.images_seen,
        )

    def at(self, interval: int) -> bool:
        """Whether something that is done every `interval` steps, and at the end, is due."""
        return self.step == self.config.train.steps or (self.step > 0 and self.step % interval == 0)

    def advance(self, batch: Batch) -> tuple[Tensor, int]:
        """One optimiser step; gives the sum of the losses over this worker's images, and how many they are.

        The gradient is that of the sum over all workers' images over train.batch_size, whoever lacks some of them.
        Each part of the batch is computed by itself; gradients are exchanged with this worker's last one.
        """
        self.step += 1
        self.images_seen += self.config.train.batch_size
        set_rates(self.optimizer, self.config.train, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        if is_compiled(self.config, self.worker.device):  # else it would import Inductor, for seconds
            torch.compiler.cudagraph_mark_step_begin()  # with CUDA graphs: the step before's may be overwritten
        images, labels = batch.images.split(batch.part_sizes), batch.labels.split(batch.part_sizes)
        losses = torch.zeros((), device=self.worker.device)
        for part, part_images, part_labels in zip(self._parts, images, labels, strict=True):
            with self._exchange(part == self._parts[-1]):
                losses = losses + self._add_gradient(part, part_images, part_labels)
        self.gradient_norm = nn.utils.clip_grad_norm_(self._parameters, self.config.train.gradient_clip)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        bad = ~(losses.isfinite() & self.gradient_norm.isfinite()) & (self._bad_step == 0)
        self._bad_step = torch.where(bad, self.step, self._bad_step)
        return losses, len(batch.images)

    def _add_gradient(self, part: int, images: Tensor, labels: Tensor) -> Tensor:
        """Add the gradient of one part of the batch, and give the sum of its losses.

        A part without images is taken with a blank one that counts for nothing, as the other workers wait for it.
        """
        torch.manual_seed(_part_seed(self.config.train.seed, self.step, part))
        count = len(images)
        if not count:
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1)
        if self.worker.device.type == "cuda":  # from other memory the copy waits for all that the GPU still has to do
            images, labels = images.pin_memory(), labels.pin_memory()
        images = images.to(self.worker.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(self.worker.device, non_blocking=True)
        losses = self._losses(images, labels).sum() * (1.0 if count else 0.0)
        # DistributedDataParallel gives the mean over workers, so each divides by its share of the batch.
        share = self.config.train.batch_size / self.worker.world_size
        (losses / (share * units(self.model.measure, self.config.dims))).backward()
        return losses.detach()

    def _exchange(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Whether a backward pass exchanges gradients, which only the last one of a step has to."""
        if wanted or not isinstance(self._losses, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._losses.no_sync()

    def require_finite(self) -> None:
        """Raise DivergedError on every worker if any step since the start had a loss or gradient that is not finite."""
        first = self._bad_step.clone()
        if self.worker.world_size > 1:
            none = torch.iinfo(torch.int64).max
            first = torch.where(first == 0, none, first)
            torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
            first = torch.where(first == none, 0, first)
        if first.item():
            raise DivergedError(
                f"step {int(first.item())}: the loss or its gradient is not finite; lower train.learning_rate "
                f"({self.config.train.learning_rate}) or train.gradient_clip ({self.config.train.gradient_clip})"
            )

    def fit_averaged(self) -> None:
        """Fit the factors of the averaged weights' logits, unless this step's checkpoint has them already."""
        if self.step > self.saved_step:
            fit_logit_scale(self.config, self.manifest, self.averaged_model, self.worker)

    def snapshot(self, measured: Measured | None, undelivered: list[Entry]) -> Snapshot:
        """A checkpoint of this step in host memory.

        Args:
            measured: the measure on data.val_split at this very step, if there is one.
            undelivered: tracking entries that MLflow has not taken.
        """
        state = State(
            step=self.step,
            images_seen=self.images_seen,
            random_seed=self.config.train.seed,
            averaged_updates=int(self.averaged.n_averaged),
            config=json.loads(self.config.model_dump_json()),
            manifest_digest=self.manifest.digest,
            undelivered=undelivered,
            val_measure=next(iter(measured.metrics("val").values())) if measured else None,
        )
        return snapshot(state, self.model, self.averaged.module, self.optimizer)


def _part_seed(seed: int, step: int, part: int) -> int:
    """A seed for dropout that is a pure function of the run's seed, the step and the part of the batch."""
    return (seed * 1_000_003 + step) * 4096 + part
