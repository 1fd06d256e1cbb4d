"""An embedding of portraits in which images of one person lie near each other, by the triplet loss.

Source: Schroff et al., FaceNet, arXiv 1503.03832, sections 3.1 and 3.2; van den Oord et al., arXiv 1606.05328, section
3.3 and appendix, which condition a PixelCNN on such a network's top layer.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor
from torch.nn import functional

from models.encoder import ConvEncoder
from models.trainable import TrainableModel


class PortraitEmbedding(TrainableModel):
    """Images to points of a sphere of radius sqrt(code_size), so that a point's numbers have a mean square of 1.

    Args:
        encoder: the convolutions and the linear map.
        margin: by how much a negative must be farther than a positive, in mean squared difference; FaceNet's 0.2.

    Raises:
        ValueError: the margin isn't above 0.
    """

    measure = "triplet_loss"

    def __init__(self, *, encoder: ConvEncoder, margin: float = 0.2) -> None:
        super().__init__()
        if margin <= 0.0:
            raise ValueError(f"margin must be above 0, got {margin}")
        self.encoder, self.margin = encoder, margin

    @property
    def code_size(self) -> int:
        """Numbers of the embedding."""
        return self.encoder.code_size

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The embedding of each image."""
        return functional.normalize(self.encoder(images), dim=1) * math.sqrt(self.code_size)

    def losses(
        self, outputs: Float[Tensor, "b d"], images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> Float64[Tensor, " b"]:
        """Triplet loss of each image as an anchor, the mean over its positives in the batch; 0 where it has none."""
        return triplet_losses(outputs.float(), labels, self.margin).double()

    def flops(self, height: int, width: int) -> int:
        return self.encoder.flops(height, width)


def triplet_losses(embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"], margin: float) -> Float[Tensor, " b"]:
    """For each anchor the mean over its positives of max(0, d(a, p) - d(a, n) + margin), 0 for an anchor without.

    d is the mean squared difference. Every positive of the batch is taken, with its semi-hard negative n: the nearest
    that is farther than the positive, or where there is none the farthest negative (FaceNet, section 3.2).
    """
    distances = (embeddings[:, None] - embeddings[None]).square().mean(2)
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negatives = _semi_hard_distances(distances, ~same)
    hinge = (distances - negatives + margin).relu()
    has_negative = (~same).any(1, keepdim=True)
    counted = (positive & has_negative).to(hinge.dtype)
    return (hinge * counted).sum(1) / counted.sum(1).clamp(min=1.0)


def _semi_hard_distances(distances: Float[Tensor, "b b"], negative: Bool[Tensor, "b b"]) -> Float[Tensor, "b b"]:
    """[a, p]: the distance from a to the negative that goes with the positive p; to any image where a has no negative.

    Chosen by index: the gradient of a smallest value divides by the count of values that equal it, and a compiler that
    computes them once more with other rounding finds none.
    """
    farther = negative[:, None] & (distances[:, None] > distances[:, :, None])
    nearest = torch.where(farther, distances[:, None], torch.inf).argmin(2)
    farthest = torch.where(negative, distances, 0.0).argmax(1, keepdim=True)
    return distances.gather(1, torch.where(farther.any(2), nearest, farthest))
