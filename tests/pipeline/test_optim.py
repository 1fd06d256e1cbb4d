import pytest
import torch

from pipeline.config import Training
from pipeline.optim import Averaged, learning_rate


def test_learning_rate_rises_linearly_and_falls_to_its_share() -> None:
    training = Training(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    assert [learning_rate(training, step) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(training, 55) == pytest.approx(0.55)
    assert learning_rate(training, 100) == pytest.approx(0.1)
    falling = [learning_rate(training, step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(Training(steps=100, warmup_steps=0, learning_rate=1.0), 1) > 0.99


def test_averaged_weights_follow_the_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = Averaged(model, 0.5)
    expected = None
    for update, value in enumerate((1.0, 2.0, 4.0, 8.0, 16.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert averaged.module.weight.item() == pytest.approx(expected)
