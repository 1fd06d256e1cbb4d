"""What a model is conditioned on: any vector h in every layer (Eq. 4) or a map s = m(h) of its own size (Eq. 5).

Source: van den Oord et al., arXiv 1606.05328, section 2.3. Eq. 4 is Eq. 5 with the same s at every position, so both
are one 1x1 convolution of s in each layer: s is h itself as a 1 x 1 map, or m(h) as an image-sized one.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

ConditionForm = Literal["vector", "map"]
SEED_SIZE = 4
"""Height and width of the map that the deconvolutional network starts from."""


def doublings(image_size: int) -> int:
    """How often 4 is doubled to reach an image's side, or the side halved until it is at most 4 pixels."""
    return max(0, math.ceil(math.log2(image_size / SEED_SIZE)))


class ConditionMap(nn.Module):
    """m of Eq. 5: h to a 4 x 4 map, then transposed 4 x 4 convolutions of stride 2, ReLU after each, cropped.

    Without biases, so that m(0) = 0: a dropped condition and none are the same. Parameters, with h of d numbers, f
    filters and k doublings of 4 up to the image's size: 16 f d + 16 k f^2.
    """

    def __init__(self, size: int, filters: int, image_size: int) -> None:
        super().__init__()
        self.filters, self.image_size = filters, image_size
        self.seed = nn.Linear(size, filters * SEED_SIZE**2, bias=False)
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(filters, filters, 4, stride=2, padding=1, bias=False)
            for _ in range(doublings(image_size))
        )

    def forward(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b s h w"]:
        features = self.seed(vectors).view(-1, self.filters, SEED_SIZE, SEED_SIZE)
        for deconvolution in self.deconvolutions:
            features = deconvolution(features.relu())
        return features[:, :, : self.image_size, : self.image_size]

    def flops(self) -> int:
        """Floating-point operations an image: 2 x 16 f d, and for doubling number j from 0: 2 x 16 f^2 x 16 x 4^j."""
        doubled = sum(32 * self.filters**2 * SEED_SIZE**2 * 4**index for index in range(len(self.deconvolutions)))
        return 2 * self.seed.weight.numel() + doubled


class Conditioning(nn.Module):
    """s of Eq. 4 and 5 from h, and in training the images that go without.

    Args:
        size: numbers of h; a label is a one-hot h.
        form: "vector" for Eq. 4, "map" for Eq. 5.
        map_filters: filters of s; for "map" only.
        image_size: height and width of the images; for "map" only.
        dropout: share of the images that are trained without their condition, so that one model serves both ways.
        turn_kinds: numbers after those of h, one for each way to turn a training image; never dropped.

    Raises:
        ValueError: there are no numbers, map_filters or image_size is below 1 or dropout is outside [0, 1).
    """

    def __init__(
        self,
        *,
        size: int,
        form: ConditionForm = "vector",
        map_filters: int = 0,
        image_size: int = 0,
        dropout: float = 0.0,
        turn_kinds: int = 0,
    ) -> None:
        super().__init__()
        numbers = size + turn_kinds
        if numbers < 1 or not 0.0 <= dropout < 1.0 or (form == "map" and (map_filters < 1 or image_size < 1)):
            raise ValueError(
                "size and turn_kinds must be at least 1 together, dropout in [0, 1), and map_filters and image_size of "
                f"a map at least 1, got {size}, {turn_kinds}, {dropout}, {map_filters} and {image_size}"
            )
        self.size, self.turn_kinds, self.form, self.dropout = size, turn_kinds, form, dropout
        self.map = ConditionMap(numbers, map_filters, image_size) if form == "map" else None
        self.filters = map_filters if form == "map" else numbers

    def forward(self, vectors: Float[Tensor, "b d"], height: int, width: int) -> Float[Tensor, "b s #h #w"]:
        if self.map is not None and (height, width) != (self.map.image_size, self.map.image_size):
            raise ValueError(
                f"a condition map is made for images of {self.map.image_size} x {self.map.image_size}, "
                f"got {height} x {width}"
            )
        if self.training and self.dropout and self.size:  # m(0) = 0, so this drops the whole of what h adds
            kept = torch.rand(len(vectors), 1, device=vectors.device) >= self.dropout
            h, turns = vectors.split([self.size, self.turn_kinds], 1)
            vectors = torch.cat([h * kept.to(h.dtype), turns], 1)
        return self.map(vectors) if self.map is not None else vectors[:, :, None, None]

    def positions(self, height: int, width: int) -> int:
        """Positions of s: where each layer's 1x1 convolution of it is computed."""
        return height * width if self.form == "map" else 1

    def flops(self) -> int:
        """Floating-point operations of m, none for a vector."""
        return self.map.flops() if self.map is not None else 0


class ConditionTerm(nn.Conv2d):
    """V of Eq. 4 and 5: the unmasked 1x1 convolution by which a layer adds s; zero at the start, without a bias.

    In the dtype of s, which the sampler gives in bfloat16 without autocast.
    """

    def __init__(self, condition_filters: int, width: int) -> None:
        super().__init__(condition_filters, width, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, input: Float[Tensor, "b s #h #w"]) -> Float[Tensor, "b f #h #w"]:
        return functional.conv2d(input, self.weight.to(input.dtype))


def condition_term(
    term: ConditionTerm | None, source: Float[Tensor, "b s #h #w"] | None
) -> Float[Tensor, "b f #h #w"] | None:
    """The layer's term of s, where the model has one and is given one."""
    if term is None or source is None:
        return None
    added: Tensor = term(source)
    return added
