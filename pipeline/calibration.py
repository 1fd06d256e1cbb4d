"""The factors of averaged weights' logits, fitted: an average of weights is less sure than right, and draws noise."""

import torch

from models.likelihood import lack_of_sureness
from models.softmax_head import SoftmaxHead
from models.trainable import TrainableModel
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import outputs_of, sum_over_workers
from pipeline.manifest import Manifest
from pipeline.stream import Batch, evaluation_batches
from pipeline.worker import Worker

FITTED_ON = 512
"""Training images, the split's first, which are as random as any: `prepare` shuffles."""
BATCH_SIZE = 32
MOST_STEPS = 8
LARGEST_STEP = 1.0
CLOSE = 0.01
"""Newton's steps, of the logarithms of the factors, end with one as small; the next would be its square or so."""
SMALLEST_VARIANCE = 1e-9
"""Below that, as where all logits are equal, a factor changes nothing."""


@torch.no_grad()
def fit_logit_scale(config: Config, manifest: Manifest, model: TrainableModel, worker: Worker) -> None:
    """Set a model's trained factors of its logits to what gives training images the largest likelihood.

    All workers take part and end with the same factors; a model without such factors is left as it is. It is the
    temperature of arXiv 1706.04599, one a colour, on training images, as what it mends is not learning by heart.

    Raises:
        UserError: a shard is not what the manifest says, and data.on_bad_shard is fail.
    """
    head = next((one for one in model.modules() if isinstance(one, SoftmaxHead)), None)
    if head is None or head.logits.log_scale is None:
        return
    was_training = model.training
    model.eval()
    batches = _batches(config, manifest, worker)
    for _ in range(MOST_STEPS):
        sums = torch.zeros(2, head.channels, dtype=torch.float64, device=worker.device)
        for batch in batches:
            logits, images, _ = outputs_of(config, model, batch, worker.device, with_labels=True)
            sums += torch.stack(lack_of_sureness(logits, images))
        totals = sum_over_workers(worker, *sums.flatten().tolist())
        gain, variance = torch.tensor(totals, dtype=torch.float64).view(2, -1)
        step = (gain / variance.clamp_min(SMALLEST_VARIANCE)).clamp(-LARGEST_STEP, LARGEST_STEP)
        head.make_surer(step)
        if step.abs().max() < CLOSE:
            break
    model.train(was_training)


def _batches(config: Config, manifest: Manifest, worker: Worker) -> list[Batch]:
    """This worker's share of the images; with data.on_bad_shard skip, those before a shard that it can't read."""
    batches = []
    try:
        for batch in evaluation_batches(
            config, manifest, BATCH_SIZE, rank=worker.rank, world_size=worker.world_size, images=FITTED_ON
        ):
            batches.append(batch)
    except UserError as error:
        if config.data.on_bad_shard == "fail":
            raise
        print(f"rank {worker.rank} fits the logits' scale without: {error}", flush=True)
    return batches
