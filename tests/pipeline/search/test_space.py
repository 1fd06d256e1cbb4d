from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.cost import training_flops
from pipeline.errors import UserError
from pipeline.search.space import (
    Choice,
    Range,
    best_config,
    grid,
    parse_space,
    rounded,
    trial_config,
    trial_name,
)
from tests.conftest import tiny_config


def searching(folder: Path, *space: str, **fields: Any) -> Config:
    values = tiny_config(folder).model_dump()
    return Config.model_validate(values | {"search": {"space": space, **fields}})


def test_spaces_are_typed(tmp_path: Path) -> None:
    words = (
        "model.num_layers=choice(2, 4)", "train.learning-rate=loguniform(1e-4,1e-2)", "model.dropout=uniform(0,0.5)",
        "train.warmup_steps=randint(1,9)", "model.condition_form=choice(vector,map)",
    )  # fmt: skip
    assert parse_space(searching(tmp_path, *words, searcher="random")) == {
        "model.num_layers": Choice((2, 4)),
        "train.learning_rate": Range(1e-4, 1e-2, is_log=True),
        "model.dropout": Range(0, 0.5),
        "train.warmup_steps": Range(1, 9, is_whole=True),
        "model.condition_form": Choice(("vector", "map")),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model.num_layer=choice(2,4)", "unknown key 'model.num_layer'; did you mean model.num_layers"),
        ("run.name=choice(a,b)", "unknown key 'run.name'; "),
        ("model.num_layers=choice()", "no values; give at least one"),
        ("model.num_layers=choice(2,2)", "a value stands there twice"),
        ("model.num_layers=choice(2,two)", "model.num_layers 'two': Input should be a valid integer"),
        ("model.num_layers=choice(2.5)", "model.num_layers 2.5: Input should be a valid integer"),
        ("model.num_layers=choice(0)", "model.num_layers 0: Input should be greater than or equal to 1"),
        ("model.num_layers=uniform(1,4)", "the key takes whole numbers; use randint or choice"),
        ("model.dropout=randint(0,1)", "the key takes fractions; use uniform, loguniform or choice"),
        ("train.learning_rate=uniform(0.1,0.01)", "low 0.1 is not below high 0.01; swap or correct them"),
        ("train.learning_rate=loguniform(0,0.01)", "low 0 has no logarithm"),
        ("train.learning_rate=uniform(0.1)", "uniform takes two numbers, low and high"),
        ("train.learning_rate=normal(0,1)", "unknown form 'normal'; write KEY=choice"),
        ("model.num_layers:2,4", "is no space: write KEY=choice"),
    ],
)
def test_what_is_no_space_is_refused_with_the_remedy(tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_space(searching(tmp_path, words, searcher="random"))
    assert message in str(refused.value)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="space is empty"):
        parse_space(searching(tmp_path))
    with pytest.raises(UserError, match=r"names model\.num_layers twice"):
        parse_space(searching(tmp_path, "model.num_layers=choice(1)", "model.num_layers=choice(2)"))
    with pytest.raises(UserError, match=r"a grid takes choice.*--search\.searcher random"):
        parse_space(searching(tmp_path, "model.dropout=uniform(0,0.5)"))
    with pytest.raises(UserError, match=r"train\.steps, which follow from search\.budget"):
        parse_space(searching(tmp_path, "train.steps=choice(5,6)", budget=1.0))


def test_a_grid_has_every_combination_and_names_say_what_differs(tmp_path: Path) -> None:
    space = parse_space(searching(tmp_path, "model.num_layers=choice(2,4)", "model.num_filters=choice(8,16)"))
    names = [trial_name(values) for values in grid(space)]
    assert names == ["layers2-filters8", "layers2-filters16", "layers4-filters8", "layers4-filters16"]
    assert trial_name({"a.size": 1, "b.size": 2}) == "a.size1-b.size2"
    assert trial_name({"data.url": "a/b"}) != trial_name({"data.url": "a_b"})


def test_drawn_numbers_are_what_their_names_say_and_stay_in_range() -> None:
    space = {"train.learning_rate": Range(0.00012345, 0.01, is_log=True)}
    assert rounded(space, {"train.learning_rate": 0.00345678}) == {"train.learning_rate": 0.003457}
    assert rounded(space, {"train.learning_rate": 0.00012345}) == {"train.learning_rate": 0.00012345}


def test_trials_of_a_budget_spend_the_same_flops_at_the_same_shares(tmp_path: Path) -> None:
    config = searching(tmp_path, budget=1e-5, evaluations=4, name="found")
    spent = []
    for layers in (1, 3):
        trial = trial_config(config, {"model.num_layers": layers}, f"layers{layers}")
        spent.append(trial.train.steps * trial.train.batch_size * training_flops(trial) / 1e15)
        assert trial.run.eval_interval == trial.run.checkpoint_interval == -(-trial.train.steps // 4)
        assert (trial.run.name, trial.run.url) == (f"layers{layers}", f"{tmp_path}/runs/found")
    assert spent == pytest.approx([1e-5, 1e-5], rel=0.05)
    images = searching(tmp_path, budget=320, budget_unit="images")
    assert trial_config(images, {"model.num_layers": 3}, "layers3").train.steps == 10


def test_the_best_is_trained_as_a_run_beside_the_search(tmp_path: Path) -> None:
    config = searching(tmp_path, name="found")
    best = best_config(config, {"model.num_layers": 3})
    assert (best.run.name, best.run.url, best.model.num_layers) == ("found-best", f"{tmp_path}/runs", 3)  # type: ignore[union-attr]
    assert Config.model_validate_json(best.model_dump_json()) == best


def test_a_population_changes_only_what_a_training_can_bear(tmp_path: Path) -> None:
    rate = "train.learning_rate=loguniform(1e-4,1e-2)"
    config = searching(tmp_path, rate, scheduler="pbt", searcher="random", evaluations=5)
    assert list(parse_space(config)) == ["train.learning_rate"]
    assert trial_config(config, {"train.learning_rate": 1e-3}, "member0").run.keep_checkpoints == 5
    with pytest.raises(UserError, match=r"model\.num_layers: pbt changes values in the middle.*train\.learning_rate"):
        parse_space(searching(tmp_path, "model.num_layers=choice(1,2)", scheduler="pbt", searcher="random"))
    with pytest.raises(UserError, match=r"--search\.searcher random \(now grid\)"):
        parse_space(searching(tmp_path, "train.learning_rate=choice(0.1)", scheduler="pbt"))
    with pytest.raises(UserError, match="a population has at least 2 members"):
        parse_space(searching(tmp_path, rate, scheduler="pbt", searcher="random", num_trials=1))
