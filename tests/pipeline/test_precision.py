import pytest
import torch
from torch import nn

from pipeline.config import Config
from pipeline.precision import compiled
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
