"""PixelCNN as a decoder of vectors that a network makes of the image, and the MSE auto-encoder it is compared with.

Source: van den Oord et al., arXiv 1606.05328, section 2.4 (auto-encoders) and section 3.3 (portraits).
"""

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from models.autoregressive import AutoregressiveModel
from models.encoder import ConvDecoder, ConvEncoder
from models.portrait_embedding import PortraitEmbedding
from models.trainable import DensityModel, TrainableModel


class PixelCNNAutoEncoder(DensityModel):
    """p(image | h) with h = encoder(image): the conditional PixelCNN is the decoder of what the encoder keeps.

    With `train_encoder` both are trained end to end, the paper's auto-encoder; without, the encoder stays as it is:
    the portraits, conditioned on the top layer of an embedding network.

    Raises:
        ValueError: the decoder isn't conditioned on as many numbers as the encoder gives.
    """

    def __init__(
        self, *, encoder: ConvEncoder | PortraitEmbedding, decoder: AutoregressiveModel, train_encoder: bool
    ) -> None:
        super().__init__()
        if encoder.code_size != decoder.body.condition_size:
            raise ValueError(
                f"the encoder gives {encoder.code_size} numbers, the decoder takes {decoder.body.condition_size}"
            )
        self.encoder, self.decoder, self.train_encoder = encoder, decoder, train_encoder
        self.encoder.requires_grad_(train_encoder)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w levels"]:
        """Logits of each sub-pixel given all before it and the whole image's h."""
        logits: Tensor = self.decoder(images, self.encode(images))
        return logits

    def encode(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """h of each image."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            code: Tensor = self.encoder(images)
        return code

    def nats(
        self, outputs: Float[Tensor, "b c h w levels"], images: UInt8[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Negative log-likelihood of each sub-pixel given all before it and the image's h, in nats."""
        return self.decoder.nats(outputs, images)

    def flops(self, height: int, width: int) -> int:
        return self.encoder.flops(height, width) + self.decoder.flops(height, width)


class MSEAutoEncoder(TrainableModel):
    """An encoder and a deconvolutional decoder trained for the least squared error."""

    measure = "squared_error"

    def __init__(self, *, encoder: ConvEncoder, decoder: ConvDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Reconstructions in intensities from 0 to 1."""
        intensities: Tensor = self.decoder(self.encoder(images))
        return intensities

    def losses(
        self, outputs: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> Float64[Tensor, " b"]:
        """Squared error of each image in intensities from 0 to 1, summed over its sub-pixels."""
        wanted = images.to(torch.float32) / (self.encoder.levels - 1)
        return (outputs - wanted).square().flatten(1).double().sum(1)

    @torch.no_grad()
    def reconstruct(self, images: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        """The images as the decoder gives them back, in levels."""
        intensities: Tensor = self(images)
        return (intensities * (self.encoder.levels - 1)).round().to(torch.uint8)

    def flops(self, height: int, width: int) -> int:
        return self.encoder.flops(height, width) + self.decoder.flops()
