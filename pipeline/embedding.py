"""The embedding that portraits are conditioned on: the averaged weights of the run that trained it."""

from models.autoencoder import PixelCNNAutoEncoder
from models.trainable import TrainableModel
from pipeline.checkpoint import newest_sound
from pipeline.errors import UserError
from pipeline.model_config import PortraitModel


def load_embedding(section: PortraitModel, model: TrainableModel) -> None:
    """Put the trained embedding into a model that is new.

    Raises:
        UserError: model.embedding_run names no run, or one whose model is not model.embedding.
    """
    assert isinstance(model, PixelCNNAutoEncoder)
    if not section.embedding_run:
        raise UserError("model.embedding_run is empty: name the folder of the run that trained the embedding")
    with newest_sound(section.embedding_run) as checkpoint:
        if checkpoint is None:
            raise UserError(
                f"model.embedding_run {section.embedding_run}: no checkpoint; train the embedding first, or correct it"
            )
        if checkpoint.config.model.model_dump() != section.embedding.model_dump():
            raise UserError(
                f"model.embedding_run {section.embedding_run} trained {checkpoint.config.model}, model.embedding is "
                f"{section.embedding}: make them the same"
            )
        model.encoder.load_state_dict(checkpoint.weights(averaged=True))
