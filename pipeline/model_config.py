"""The kinds of model that a run trains, a section each, told apart by `kind`: a tagged union."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from models.autoencoder import MSEAutoEncoder, PixelCNNAutoEncoder
from models.autoregressive import AutoregressiveModel, Body
from models.conditioning import Conditioning
from models.encoder import ConvDecoder, ConvEncoder
from models.gated_pixelcnn import GatedPixelCNN
from models.pixel_rnn import PixelRNN
from models.pixelcnn import PixelCNN
from models.portrait_embedding import PortraitEmbedding
from models.softmax_head import SoftmaxHead
from models.trainable import TrainableModel
from pipeline.errors import UserError
from pipeline.section import Section
from pipeline.turned import kinds_of_turns


class ImageShape(Section):
    """What the data says about the images that a model is built for."""

    image_size: int
    channels: int
    levels: int
    num_classes: int


class ModelSection(Section):
    """What every kind has in common: how it is checked against the images, and built."""

    prefix: ClassVar[str] = "model."
    grouped: ClassVar[tuple[str, ...]] = ()
    """Fields that must be multiples of the number of colours."""

    def require_fit(self, shape: ImageShape) -> None:
        """Raise UserError where the fields don't fit each other or the images."""
        for name in self.grouped:
            if getattr(self, name) % shape.channels:
                raise UserError(
                    f"model.{name} {getattr(self, name)} is not a multiple of data.channels {shape.channels}: "
                    "choose a multiple"
                )
        for name in ("kernel_size", "first_kernel_size", "state_kernel_size"):
            if getattr(self, name, 1) % 2 == 0:
                raise UserError(f"model.{name} {getattr(self, name)} is even: choose an odd size")

    @abstractmethod
    def build(self, shape: ImageShape) -> TrainableModel:
        """The model with random weights from torch's global generator."""


class DensitySection(ModelSection):
    """A body under the softmax head."""

    grouped = ("num_filters", "head_filters")
    num_layers: int = Field(default=8, ge=1)
    """Layers of the body: gated layers, residual blocks, or recurrent layers."""
    num_filters: int = Field(default=32, ge=1)
    """Filters of each stack (Gated PixelCNN) or h of PixelRNN's Table 1; a multiple of data.channels."""
    head_filters: int = Field(default=64, ge=1)
    """Filters between the head's two 1x1 convolutions; a multiple of data.channels."""
    logit_scale: float = Field(default=1.0, gt=0.0)
    """By what the head's logits are multiplied; 256 levels are learnt in fewer steps with more than 1."""
    trained_logit_scale: bool = False
    """Train a further factor for each colour's logits, so that the model is as sure as it is right; the averaged
    weights' are fitted to 512 training images before those are measured or drawn from."""

    def with_head(self, body: Body, shape: ImageShape, num_classes: int = 0) -> AutoregressiveModel:
        """The density model of the body."""
        head = SoftmaxHead(
            num_features=body.num_features,
            head_filters=self.head_filters,
            channels=shape.channels,
            levels=shape.levels,
            logit_scale=self.logit_scale,
            trained_logit_scale=self.trained_logit_scale,
        )
        return AutoregressiveModel(body=body, head=head, num_classes=num_classes)


class GatedSection(DensitySection):
    """The fields of a Gated PixelCNN, whatever it is conditioned on."""

    kernel_size: int = Field(default=5, ge=3)
    """n of the n x n vertical and 1 x n horizontal convolution in pixels; odd."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of gated activations set to zero in training."""
    condition_form: Literal["vector", "map"] = "vector"
    """How the condition enters each layer: the same everywhere (Eq. 4), or by place through m(h) (Eq. 5)."""
    map_filters: int = Field(default=32, ge=1)
    """Filters of the map m(h); for condition_form map."""
    condition_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of images trained without their condition, so that the model serves with and without."""

    def gated(
        self, shape: ImageShape, condition_size: int, num_classes: int = 0, turn_kinds: int = 0
    ) -> AutoregressiveModel:
        """The Gated PixelCNN conditioned on that many numbers, and on the ways to turn a training image."""
        conditioning = None
        if condition_size or turn_kinds:
            conditioning = Conditioning(
                size=condition_size,
                form=self.condition_form,
                map_filters=self.map_filters,
                image_size=shape.image_size,
                dropout=self.condition_dropout,
                turn_kinds=turn_kinds,
            )
        body = GatedPixelCNN(
            channels=shape.channels,
            num_layers=self.num_layers,
            num_filters=self.num_filters,
            kernel_size=self.kernel_size,
            dropout=self.dropout,
            conditioning=conditioning,
        )
        return self.with_head(body, shape, num_classes)


class GatedPixelCNNModel(GatedSection):
    """Gated PixelCNN (arXiv 1606.05328), unconditional or conditioned on the label."""

    kind: Literal["gated-pixelcnn"] = "gated-pixelcnn"
    """The kind of model; the preset chooses it."""
    conditional: bool = True
    """Condition every layer on the class label (Eq. 4 or 5)."""
    turned_images: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training images that are turned by quarters, transposed or have their colours exchanged, of which
    the model is told: for images that repeat often. Those evaluated and drawn never are."""

    def build(self, shape: ImageShape) -> AutoregressiveModel:
        num_classes = shape.num_classes if self.conditional else 0
        turn_kinds = kinds_of_turns(shape.channels) if self.turned_images else 0
        return self.gated(shape, num_classes, num_classes, turn_kinds)


class PixelCNNModel(DensitySection):
    """PixelCNN (arXiv 1601.06759)."""

    kind: Literal["pixelcnn"] = "pixelcnn"
    """The kind of model; the preset chooses it."""
    first_kernel_size: int = Field(default=7, ge=3)
    """n of the first n x n convolution in pixels; odd."""
    kernel_size: int = Field(default=3, ge=3)
    """n of the residual blocks' n x n convolutions in pixels; odd."""

    def build(self, shape: ImageShape) -> AutoregressiveModel:
        body = PixelCNN(
            channels=shape.channels,
            num_layers=self.num_layers,
            num_filters=self.num_filters,
            first_kernel_size=self.first_kernel_size,
            kernel_size=self.kernel_size,
        )
        return self.with_head(body, shape)


class PixelRNNModel(DensitySection):
    """Row LSTM and Diagonal BiLSTM (arXiv 1601.06759)."""

    kind: Literal["row-lstm", "diagonal-bilstm"] = "row-lstm"
    """The kind of model; the preset chooses it."""
    kernel_size: int = Field(default=7, ge=3)
    """n of the first n x n convolution in pixels; odd."""
    state_kernel_size: int = Field(default=3, ge=3)
    """Width of Row LSTM's input-to-state and state-to-state convolutions in pixels; odd."""
    residual: bool = True
    """Add each layer's input to its output."""
    skip: bool = True
    """Connect each layer to the head."""

    def build(self, shape: ImageShape) -> AutoregressiveModel:
        body = PixelRNN(
            channels=shape.channels,
            recurrence="row" if self.kind == "row-lstm" else "diagonal",
            num_layers=self.num_layers,
            num_filters=self.num_filters,
            kernel_size=self.kernel_size,
            state_kernel_size=self.state_kernel_size,
            residual=self.residual,
            skip=self.skip,
        )
        return self.with_head(body, shape)


class AutoEncoderModel(GatedSection):
    """Convolutional encoder to a bottleneck, conditional Gated PixelCNN as decoder, trained end to end."""

    kind: Literal["pixelcnn-autoencoder"] = "pixelcnn-autoencoder"
    """The kind of model; the preset chooses it."""
    code_size: int = Field(default=10, ge=1)
    """Numbers m of the bottleneck; the paper's 10 or 100."""
    encoder_filters: int = Field(default=32, ge=1)
    """Filters of the encoder's first block; each next one has twice as many."""

    def build(self, shape: ImageShape) -> PixelCNNAutoEncoder:
        encoder = _encoder(shape, self.encoder_filters, self.code_size, "tanh")
        return PixelCNNAutoEncoder(encoder=encoder, decoder=self.gated(shape, self.code_size), train_encoder=True)


class MSEAutoEncoderModel(ModelSection):
    """The same encoder under a deconvolutional decoder, trained for the squared error."""

    kind: Literal["mse-autoencoder"] = "mse-autoencoder"
    """The kind of model; the preset chooses it."""
    code_size: int = Field(default=10, ge=1)
    """Numbers m of the bottleneck; the paper's 10 or 100."""
    encoder_filters: int = Field(default=32, ge=1)
    """Filters of the encoder's first and the decoder's last block."""

    def build(self, shape: ImageShape) -> MSEAutoEncoder:
        decoder = ConvDecoder(
            channels=shape.channels,
            image_size=shape.image_size,
            num_filters=self.encoder_filters,
            code_size=self.code_size,
        )
        return MSEAutoEncoder(encoder=_encoder(shape, self.encoder_filters, self.code_size, "tanh"), decoder=decoder)


class EmbeddingModel(ModelSection):
    """An embedding of portraits by the triplet loss (FaceNet, arXiv 1503.03832); the labels are people."""

    kind: Literal["portrait-embedding"] = "portrait-embedding"
    """The kind of model; the preset chooses it."""
    code_size: int = Field(default=32, ge=1)
    """Numbers of the embedding."""
    encoder_filters: int = Field(default=32, ge=1)
    """Filters of the network's first block; each next one has twice as many."""
    margin: float = Field(default=0.2, gt=0.0)
    """By how much another person must be farther than the same one, in mean squared difference."""

    def build(self, shape: ImageShape) -> PortraitEmbedding:
        encoder = _encoder(shape, self.encoder_filters, self.code_size, "relu")
        return PortraitEmbedding(encoder=encoder, margin=self.margin)


class NestedEmbedding(EmbeddingModel):
    """The embedding network that another model stands on."""

    prefix: ClassVar[str] = "model.embedding."


class PortraitModel(GatedSection):
    """Gated PixelCNN conditioned on a trained embedding of the portrait, which stays as it is."""

    kind: Literal["portrait-pixelcnn"] = "portrait-pixelcnn"
    """The kind of model; the preset chooses it."""
    embedding: NestedEmbedding = NestedEmbedding()
    """The embedding network; as it was trained."""
    embedding_run: str = ""
    """Folder or s3://bucket/prefix of the run that trained the embedding; its averaged weights are taken."""

    def build(self, shape: ImageShape) -> PixelCNNAutoEncoder:
        embedding = self.embedding.build(shape)
        decoder = self.gated(shape, self.embedding.code_size)
        return PixelCNNAutoEncoder(encoder=embedding, decoder=decoder, train_encoder=False)


Model = Annotated[
    GatedPixelCNNModel
    | PixelCNNModel
    | PixelRNNModel
    | AutoEncoderModel
    | MSEAutoEncoderModel
    | EmbeddingModel
    | PortraitModel,
    Field(discriminator="kind"),
]


def _encoder(shape: ImageShape, filters: int, code_size: int, activation: Literal["tanh", "relu"]) -> ConvEncoder:
    if shape.image_size <= 4:
        raise UserError(f"data.image_size {shape.image_size} is too small for an encoder: choose at least 5")
    return ConvEncoder(
        channels=shape.channels,
        levels=shape.levels,
        image_size=shape.image_size,
        num_filters=filters,
        code_size=code_size,
        activation=activation,
    )
