import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.autoregressive import AutoregressiveModel
from models.likelihood import nats_of_images
from pipeline import train as train_module
from pipeline.checkpoint import folder_name, newest_sound, steps_below
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.learner import Learner, run_url_of
from pipeline.manifest import load_manifest, split_url
from pipeline.run_identity import RunIdentity, identify
from pipeline.shards import decode_png, fetch
from pipeline.stream import Batch
from pipeline.train import train
from tests.conftest import LocalWorker


class Killed(BaseException):
    """The process dies here."""


def changed(config: Config, **sections: dict[str, object]) -> Config:
    return Config.model_validate(_merged(config, sections))


def _merged(config: Config, sections: dict[str, dict[str, object]]) -> dict[str, object]:
    tree = config.model_dump()
    for section, values in sections.items():
        tree[section] |= values
    return tree


def fit(config: Config) -> dict[str, float]:
    return train(config, LocalWorker(run_url_of(config)), identity_of(config))


def identity_of(config: Config) -> RunIdentity:
    return identify(config, load_manifest(config, "train"), run_url_of(config), "commit")


def final_weights(config: Config) -> dict[str, torch.Tensor]:
    newest = steps_below(run_url_of(config))[0]
    folder = Path(run_url_of(config), newest)
    return {
        f"{name}:{key}": tensor
        for name in ("weights", "averaged")
        for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_twenty_steps_follow_the_kept_trace(digits: Config) -> None:
    """Bits/dim of every step as this architecture, order of images and optimiser gave them when they were written."""
    config = changed(digits, model={"dropout": 0.0}, train={"steps": 20})
    torch.manual_seed(0)
    learner = Learner(config, LocalWorker(""), load_manifest(config, "train"))
    trace = []
    with learner.stream() as stream:
        for _ in range(20):
            nats, images = learner.advance(next(stream))
            trace.append(nats.item() / images / config.dims / math.log(2))
    kept = json.loads((Path(__file__).parent / "trace.json").read_text())
    assert trace == pytest.approx(kept, abs=2e-4)


def test_training_learns_and_reports(digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = fit(changed(digits, train={"steps": 60}, run={"eval_interval": 30}))
    told = capsys.readouterr().out
    assert metrics["step"] == 60
    assert metrics["images_seen"] == 60 * 32
    assert metrics["val/images"] == 179
    assert metrics["val/bits_per_dim"] < 3.5 < math.log2(17)
    assert re.search(r"step 60/60  images 1,920  [\d.]+ bits/dim, [\d.]+ nats an image", told)
    assert "time left 0:00:00" in told
    assert "val: " in told


@pytest.mark.parametrize(
    ("dies_after", "flips", "muon", "noisy"),
    [(1, False, 0.0, 0.0), (4, True, 0.02, 0.0), (5, False, 0.02, 0.5), (9, True, 0.0, 0.5), (11, False, 0.02, 0.0)],
)
def test_killed_run_ends_with_the_same_weights_bit_for_bit(
    dies_after: int, flips: bool, muon: float, noisy: float, digits: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = changed(
        digits,
        model={"trained_logit_scale": noisy > 0, "turned_images": noisy},
        train={"horizontal_flips": flips, "muon_learning_rate": muon, "noisy_images": noisy},
        run={"eval_interval": 4 if noisy else 6},  # 4: the factors are fitted for the very checkpoint it goes on from
    )
    undisturbed = changed(digits, run={"name": "undisturbed"})
    fit(undisturbed)
    real_advance = Learner.advance

    def dying(learner: Learner, batch: object) -> object:
        if learner.step == dies_after:
            raise Killed
        return real_advance(learner, batch)

    monkeypatch.setattr(Learner, "advance", dying)
    with pytest.raises(Killed):
        fit(digits)
    monkeypatch.setattr(Learner, "advance", real_advance)
    fit(digits)
    assert_same(final_weights(digits), final_weights(undisturbed))


@pytest.mark.parametrize("interval", [4, 50])
def test_a_step_is_kept_before_its_images_are_drawn(
    interval: int, digits: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is out to draw, nothing is lost that was trained, and the same command draws what is missing."""
    digits = changed(digits, run={"sample_interval": interval, "checkpoint_interval": interval})

    def no_memory(*given: object) -> None:
        raise torch.OutOfMemoryError("no memory to draw")

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "training_grid", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            fit(digits)
    assert steps_below(run_url_of(digits)) == [folder_name(min(interval, digits.train.steps))]
    drawn: list[int] = []
    real = train_module.training_grid
    monkeypatch.setattr(train_module, "training_grid", lambda *given: drawn.append(1) or real(*given))
    fit(digits)
    assert len(drawn) == len({*range(interval, digits.train.steps, interval), digits.train.steps})
    assert steps_below(run_url_of(digits))[0] == folder_name(digits.train.steps)


def test_finished_run_does_nothing_more(digits: Config) -> None:
    first = fit(digits)
    before = final_weights(digits)
    assert fit(digits) == first
    assert_same(final_weights(digits), before)


def test_changed_configuration_is_refused_with_the_keys(digits: Config) -> None:
    fit(digits)
    with pytest.raises(UserError, match=r"train\.learning_rate \(was 0\.003, now 0\.1\).*another --run\.name"):
        fit(changed(digits, train={"learning_rate": 0.1}))
    fit(changed(digits, run={"log_interval": 5}))


def test_other_data_on_resume_are_refused(digits: Config) -> None:
    fit(digits)
    manifest = Path(split_url(digits, "train"), "manifest.json")
    manifest.write_text(manifest.read_text().replace("digits-8-none", "digits-8-other"))
    with pytest.raises(UserError, match="the manifest's digest"):
        fit(digits)


def test_non_finite_loss_names_its_step_and_is_never_kept(digits: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(digits, run={"log_interval": 12, "checkpoint_interval": 4, "eval_interval": 12})

    def poisoned(model: object, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nats = nats_of_images(logits, images)
        poisoned.calls += 1
        return nats * math.nan if poisoned.calls == 7 else nats

    poisoned.calls = 0
    monkeypatch.setattr(AutoregressiveModel, "losses", poisoned)
    with pytest.raises(UserError, match=r"step 7: the loss or its gradient is not finite; lower train\.learning_rate"):
        fit(config)
    assert steps_below(run_url_of(config)) == ["step-000000004"]


@pytest.mark.parametrize("file", ["optimizer.pt", "weights.safetensors", "checkpoint.json"])
def test_torn_newest_checkpoint_is_passed_over(file: str, digits: Config, capsys: pytest.CaptureFixture[str]) -> None:
    fit(digits)
    whole = final_weights(digits)
    newest = Path(run_url_of(digits), "step-000000012")
    torn = (newest / file).read_bytes()[:-100]
    (newest / file).unlink()  # the weights above are read from the file itself
    (newest / file).write_bytes(torn)
    with newest_sound(run_url_of(digits)) as checkpoint:
        assert checkpoint is not None
        assert checkpoint.state.step == 8
    assert f"step-000000012/{file} is torn" in capsys.readouterr().out
    fit(digits)
    assert_same(final_weights(digits), whole)


def test_a_checkpoint_of_another_form_is_refused_rather_than_begun_anew(digits: Config) -> None:
    fit(digits)
    state = Path(run_url_of(digits), "step-000000012", "checkpoint.json")
    state.write_text(state.read_text().replace('"images_seen"', '"images"'))
    with pytest.raises(
        UserError, match=r"step-000000012/checkpoint\.json: images_seen: Field required; another version"
    ):
        fit(digits)


def test_checkpoint_without_its_last_file_is_none(digits: Config) -> None:
    fit(digits)
    for folder in Path(run_url_of(digits)).glob("step-*"):
        (folder / "checkpoint.json").unlink()
    with newest_sound(run_url_of(digits)) as checkpoint:
        assert checkpoint is None


def test_evaluation_equals_the_sum_over_single_images(digits: Config) -> None:
    manifest = load_manifest(digits, "val")
    torch.manual_seed(0)
    model = digits.build_model()
    measured = evaluate(digits, manifest, model, LocalWorker(""), batch_size=50)
    by_hand = 0.0
    model.eval()
    for shard in manifest.shards:
        for record in fetch(split_url(digits, "val"), shard):
            image = torch.from_numpy(decode_png(record, manifest.shape).copy())[None]
            with torch.no_grad():
                by_hand += nats_of_images(model(image, torch.tensor([record.label])), image).item()
    assert measured.images == 179
    assert measured.total == pytest.approx(by_hand, rel=1e-6)
    assert measured.metrics("val")["val/bits_per_dim"] == pytest.approx(by_hand / math.log(2) / 179 / 64, rel=1e-6)


def test_bfloat16_and_float32_agree(digits: Config) -> None:
    manifest = load_manifest(digits, "val")
    torch.manual_seed(0)
    model = digits.build_model()
    exact = evaluate(digits, manifest, model, LocalWorker(""), 50).metrics("val")["val/bits_per_dim"]
    coarse = evaluate(changed(digits, run={"precision": "bfloat16"}), manifest, model, LocalWorker(""), 50).metrics(
        "val"
    )["val/bits_per_dim"]
    assert coarse != exact
    assert coarse == pytest.approx(exact, abs=0.01)


def test_training_goes_on_without_the_shards_that_it_may_skip(
    digits: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """One shard of eleven is left: batches are short, or have no image at all; steps and images seen stay in order."""
    config = changed(digits, data={"on_bad_shard": "skip"}, train={"batch_size": 16, "steps": 105})
    shards = sorted(Path(digits.data.url, "train").glob("*.tar"))
    for shard in shards[1:]:
        shard.unlink()
    metrics = fit(changed(config, run={"log_interval": 105, "eval_interval": 105}))
    assert metrics["step"] == 105
    assert metrics["images_seen"] == 1680
    assert math.isfinite(metrics["val/bits_per_dim"])
    assert "the shard is missing" in capsys.readouterr().out


def test_a_batch_without_images_changes_no_gradient(digits: Config) -> None:
    learner = Learner(digits, LocalWorker(run_url_of(digits)), load_manifest(digits, "train"))
    learner.restore()
    empty = Batch(torch.empty(0, 1, 8, 8, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), [], [0])
    losses, images = learner.advance(empty)
    assert (losses.item(), images, learner.images_seen) == (0.0, 0, digits.train.batch_size)
    assert all(not parameter.grad.any() for parameter in learner.model.parameters() if parameter.grad is not None)
    learner.require_finite()


def test_a_training_without_any_image_ends_with_the_reason(digits: Config) -> None:
    for shard in Path(digits.data.url, "train").glob("*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match=r"none of the last 2 batches held an image .* data.url"):
        fit(changed(digits, data={"on_bad_shard": "skip"}))
