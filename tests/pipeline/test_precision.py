import pytest
import torch
from torch import nn

from pipeline.config import Config
from pipeline.learner import Learner, run_url_of
from pipeline.manifest import load_manifest
from pipeline.precision import compiled
from tests.conftest import LocalWorker
from tests.pipeline.test_train import changed


@pytest.mark.parametrize(
    ("how", "on_a_cpu", "on_a_gpu"),
    [
        ("off", False, False),
        ("auto", False, True),
        ("on", True, True),
        ("reduce-overhead", False, True),
        ("max-autotune", False, True),
    ],
)
def test_what_is_compiled_where(
    how: str, on_a_cpu: bool, on_a_gpu: bool, digits: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    config, model = changed(digits, run={"compile": how}), nn.Linear(1, 1)
    for device, wanted in (("cpu", on_a_cpu), ("cuda", on_a_gpu)):
        assert (compiled(config, model, torch.device(device)) is not model) == wanted
        assert torch.backends.cudnn.benchmark == (device == "cuda")


@pytest.mark.parametrize(("how", "steps_told"), [("auto", 0), ("off", 0), ("on", 2)])
def test_only_compiled_steps_are_told_of_as_that_imports_inductor(
    how: str, steps_told: int, digits: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    config = changed(digits, run={"compile": how})
    learner = Learner(config, LocalWorker(run_url_of(config)), load_manifest(config, "train"))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(learner.step))
    learner.restore()
    with learner.stream() as stream:
        for _ in range(2):
            learner.advance(next(stream))
    assert told == [1, 2][:steps_told]
