import pytest

from pipeline.config import Config, changed_result_keys, flatten
from pipeline.errors import UserError
from pipeline.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_configuration_survives_json(preset: str) -> None:
    config = PRESETS[preset].config
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_unknown_key_is_named_with_its_section() -> None:
    with pytest.raises(UserError, match=r"model\.depth 3: Extra inputs are not permitted"):
        Config.model_validate({"model": {"kind": "pixelcnn", "depth": 3}})


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().model.num_layers = 3  # type: ignore[misc]


def test_flat_keys_are_dotted() -> None:
    flat = flatten(Config())
    assert flat["model.num_layers"] == 8
    assert flat["preset"] == "digits"
    assert not any(isinstance(value, dict) for value in flat.values())


def test_changed_keys_are_those_that_change_the_result() -> None:
    before = Config()
    now = Config.model_validate(
        {
            "model": {"kind": "gated-pixelcnn", "num_layers": 9},
            "run": {"log_interval": 7},
            "data": {"url": "s3://b/d"},
            "cluster": {"num_workers": 4},
        }
    )
    assert changed_result_keys(before, now) == ["model.num_layers (was 8, now 9)"]


def test_empty_and_real_model_are_the_same_architecture() -> None:
    config = PRESETS["digits"].config
    empty, real = config.empty_model(), config.build_model()
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_the_shard_cache_is_a_folder_of_the_hosts() -> None:
    with pytest.raises(UserError, match=r"data.cache_folder s3://bucket/cache: not a folder"):
        Config.model_validate({"data": {"cache_folder": "s3://bucket/cache"}})
