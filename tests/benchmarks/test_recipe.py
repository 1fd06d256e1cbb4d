"""A line of the trials' table says what the training loop itself comes to."""

from pathlib import Path

import pytest

from benchmarks import recipe
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.train import train
from tests.conftest import LocalWorker
from tests.pipeline.test_train import identity_of


def test_a_row_has_the_training_loops_figures_and_a_grid(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "GRIDS", tmp_path / "grids")
    cells = [cell.strip() for cell in recipe.row("tiny", digits, test_images=10_000, draws=True).strip("|").split("|")]
    names = [cell.strip() for cell in recipe.HEADING.splitlines()[0].strip("|").split("|")]
    found = dict(zip(names, cells, strict=True))
    metrics = train(digits, LocalWorker(""), identity_of(digits))
    assert found["averaged"] == f"{metrics['val/bits_per_dim']:.4f}"
    assert len({found[name] for name in ("test bits/dim, raw", "averaged", "training images, averaged")}) == 3
    assert found["images"] == "384"
    assert found["test images"] == "179"
    assert float(found["drawn, bits/dim"]) > 0
    assert (tmp_path / "grids/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_variants_are_pairs_of_a_name_and_its_changes(digits: Config) -> None:
    words = ["base", "", "wide", "model.num_filters=48,train.seed=2", "base", ""]
    found = recipe.variants_of(words, digits)
    assert [name for name, _ in found] == ["base", "wide", "base"]
    assert found[0][1] == digits
    assert (found[1][1].model.model_dump()["num_filters"], found[1][1].train.seed) == (48, 2)
    with pytest.raises(UserError, match=r'^variant deep: its changes are missing; give "" for none$'):
        recipe.variants_of(["base", "", "deep"], digits)
    with pytest.raises(UserError, match=r"^model\.kernel '3'"):
        recipe.variants_of(["base", "model.kernel=3"], digits)
