import json
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.search import run
from pipeline.search.run import run_search
from tests.pipeline.search.test_space import searching
from tests.pipeline.test_train import changed


@pytest.mark.parametrize(
    ("there", "workers", "gpus", "places"),
    [
        ({"CPU": 16.0}, 4, False, 4),
        ({"CPU": 16.0}, 5, False, 3),
        ({"CPU": 64.0, "GPU": 8.0}, 4, True, 2),
        ({"CPU": 6.0, "GPU": 8.0}, 2, True, 3),
        ({"CPU": 8.0}, 2, True, 1),
        ({"CPU": 1.0}, 2, False, 1),
    ],
)
def test_as_many_trials_as_the_cluster_holds_workers_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: dict[str, float], workers: int, gpus: bool, places: int
) -> None:
    monkeypatch.setattr(run.ray, "cluster_resources", lambda: there)
    config = changed(searching(tmp_path, "model.num_layers=choice(1,2)"), cluster={"num_workers": workers})
    assert run._places(changed(config, cluster={"use_gpu": gpus})) == places


def test_a_search_that_cant_be_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = searching(tmp_path, "model.num_layers=choice(1,2)")
    with pytest.raises(UserError, match=r"cluster\.num_workers 0: .* choose at least 1"):
        run_search(changed(config, cluster={"num_workers": 0}))
    embedding = {"model": {"kind": "portrait-embedding"}, "search": {"space": ("train.seed=choice(1,2)",)}}
    other = Config.model_validate(config.model_dump() | embedding)
    with pytest.raises(UserError, match=r"model\.kind portrait-embedding has no bits/dim"):
        run_search(other)
    assert not (tmp_path / "runs").exists()


def test_another_search_does_not_go_on_in_a_folder(tmp_path: Path) -> None:
    config = searching(tmp_path, "model.num_layers=choice(1,2)", name="found", budget=1e-6)
    run._require_same_search(config, f"{tmp_path}/found")
    run._require_same_search(
        changed(config, search={"space": ("model.num_layers=choice(1,2,3)",)}), f"{tmp_path}/found"
    )
    with pytest.raises(UserError, match=r"search\.budget \(was 1e-06, now 2e-06\); use the old values, or another"):
        run._require_same_search(changed(config, search={"budget": 2e-6}), f"{tmp_path}/found")
    with pytest.raises(UserError, match=r"train\.learning_rate \(was 0\.003, now 0\.1\)"):
        run._require_same_search(changed(config, train={"learning_rate": 0.1}), f"{tmp_path}/found")
    assert json.loads((tmp_path / "found/search.json").read_text())["search"]["budget"] == 1e-6
