from pathlib import Path

import pytest

from pipeline import checkpoint
from pipeline.checkpoint import adopt, newest_config, newest_sound, steps_below
from pipeline.config import Config
from pipeline.learner import run_url_of
from pipeline.storage import join
from tests.pipeline.test_train import assert_same, changed, final_weights, fit


@pytest.fixture
def members(digits: Config) -> tuple[Config, Config]:
    """Two trained runs that differ in their learning rate, with checkpoints of steps 8 and 12."""
    strong = changed(digits, run={"name": "strong"})
    weak = changed(digits, run={"name": "weak"}, train={"learning_rate": 1e-5})
    fit(strong)
    fit(weak)
    return strong, weak


def test_a_run_goes_on_from_another_ones_checkpoint(members: tuple[Config, Config]) -> None:
    strong, weak = members
    adopt(join(run_url_of(strong), "step-000000008"), run_url_of(weak), changed(weak, train={"learning_rate": 1e-3}))
    assert steps_below(run_url_of(weak))[0] == "step-000000008"
    with newest_sound(run_url_of(weak)) as taken, newest_sound(run_url_of(strong)) as last:
        assert taken is not None
        assert last is not None
        assert (taken.config.train.learning_rate, taken.config.run.name) == (1e-3, "weak")
        assert taken.state.images_seen == 8 * 32
    same_recipe = changed(strong, run={"name": "weak"})
    adopt(join(run_url_of(strong), "step-000000008"), run_url_of(weak), same_recipe)
    fit(same_recipe)
    assert_same(final_weights(same_recipe), final_weights(strong))


def test_a_run_keeps_its_own_checkpoints_until_the_other_is_whole(
    members: tuple[Config, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    strong, weak = members
    own = final_weights(weak)

    def torn(url: str, content: bytes) -> None:
        if url.endswith("optimizer.pt"):
            raise OSError("killed here")
        Path(url).write_bytes(content)

    monkeypatch.setattr(checkpoint, "write", torn)
    with pytest.raises(OSError, match="killed here"):
        adopt(join(run_url_of(strong), "step-000000008"), run_url_of(weak), weak)
    assert_same(final_weights(weak), own)


def test_the_newest_configuration_is_known_without_the_weights(members: tuple[Config, Config], tmp_path: Path) -> None:
    _, weak = members
    assert newest_config(run_url_of(weak)) == weak
    assert newest_config(f"{tmp_path}/absent") is None
