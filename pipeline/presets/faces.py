"""Portraits: the ORL faces, and a folder of people of one's own."""

from typing import Any

from pipeline.config import Cluster, Config, Data, Evaluation, Run, Sampling, Training
from pipeline.model_config import EmbeddingModel, Model, NestedEmbedding, PortraitModel
from pipeline.presets.preset import GPUS, HEAD, NOT_MEASURED, ONE_GPU, Preset

FACE_EMBEDDING = EmbeddingModel(code_size=32, encoder_filters=16)
PORTRAIT_EMBEDDING = EmbeddingModel(code_size=128, encoder_filters=64)
ORL_VERSION = (
    "faces-32-center-crop-box-32levels, the ORL faces (data.source att_faces.npz): 36 people to train on, 4 held out"
)
OWN_VERSION = "portraits-32-center-crop-box, your own folder of people, 2% of them held out"
ORL_DATA = Data(
    name="faces",
    url="data/faces",
    source_format="npz",
    image_size=32,
    channels=1,
    levels=32,
    num_classes=40,
    resize="center-crop-box",
    holdout="classes",
    records_per_shard=100,
)
OWN_DATA = Data(
    name="portraits",
    url="data/portraits",
    source_format="class-folders",
    image_size=32,
    channels=3,
    levels=256,
    num_classes=1000,
    resize="center-crop-box",
    holdout="classes",
    holdout_fraction=0.02,
    records_per_shard=10_000,
)


def _faces(name: str, model: Model, data: Data, **sections: Any) -> Config:
    return Config(preset=name, model=model, data=data, **sections)


PORTRAITS: dict[str, Preset] = {
    "faces-embedding": Preset(
        _faces(
            "faces-embedding",
            FACE_EMBEDDING,
            ORL_DATA,
            train=Training(steps=300, batch_size=120, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99),
            run=Run(name="faces-embedding", log_interval=20, eval_interval=100, checkpoint_interval=200),
            cluster=Cluster(num_workers=1, cpus_per_worker=2),
            evaluate=Evaluation(batch_size=40),
        ),
        data_version=ORL_VERSION,
        cost="a minute on two CPU cores",
        expect="triplet loss 0.081 on the 4 people held out, docs/models.md",
    ),
    "faces": Preset(
        _faces(
            "faces",
            PortraitModel(
                num_layers=6,
                num_filters=32,
                head_filters=64,
                dropout=0.2,
                condition_form="map",
                map_filters=32,
                embedding=NestedEmbedding(**dict(FACE_EMBEDDING)),
                embedding_run="runs/faces-embedding",
            ),
            ORL_DATA,
            train=Training(steps=1500, batch_size=16, learning_rate=2e-3, warmup_steps=100, ema_decay=0.995),
            run=Run(name="faces", log_interval=20, eval_interval=300, sample_interval=1500, checkpoint_interval=200),
            evaluate=Evaluation(batch_size=20),
            sample=Sampling(count=32, grid_columns=8, batch_size=16),
        ),
        data_version=ORL_VERSION,
        cost="eight minutes on two CPU cores",
        expect="2.47 bits/dim of 32 levels given h on the 4 people held out, docs/models.md; face-like, not yet faces",
    ),
    "portraits-embedding": Preset(
        _faces(
            "portraits-embedding",
            PORTRAIT_EMBEDDING,
            OWN_DATA,
            train=Training(steps=100_000, batch_size=1800, learning_rate=5e-4, warmup_steps=1000, ema_decay=0.999),
            run=Run(name="portraits-embedding", log_interval=50, eval_interval=2000, checkpoint_interval=1000),
            cluster=ONE_GPU,
            evaluate=Evaluation(batch_size=1800),
        ),
        data_version=OWN_VERSION,
        cost=NOT_MEASURED,
        expect="a triplet loss near 0; FaceNet's batches of about 1,800 so that each person is there several times",
    ),
    "portraits": Preset(
        _faces(
            "portraits",
            PortraitModel(
                num_layers=20,
                num_filters=384,
                head_filters=HEAD,
                embedding=NestedEmbedding(**dict(PORTRAIT_EMBEDDING)),
                embedding_run="runs/portraits-embedding",
            ),
            OWN_DATA,
            train=Training(
                steps=200_000, batch_size=128, learning_rate=3e-4, warmup_steps=2000, beta2=0.95, ema_decay=0.9999
            ),
            run=Run(
                name="portraits",
                log_interval=100,
                eval_interval=10_000,
                sample_interval=10_000,
                checkpoint_interval=2000,
            ),
            cluster=GPUS,
            evaluate=Evaluation(batch_size=128),
            sample=Sampling(count=64, grid_columns=8, batch_size=64),
        ),
        data_version=OWN_VERSION,
        cost=NOT_MEASURED,
        expect="the portraits of arXiv 1606.05328, Fig. 4 and 5; the paper states no likelihood",
    ),
}
