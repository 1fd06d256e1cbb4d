import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint, uploader
from pipeline.checkpoint import Snapshot, State, folder_name, newest_sound, remove_old, snapshot, steps_below, upload
from pipeline.config import Config
from pipeline.errors import LastingError, UserError
from pipeline.storage import write
from pipeline.uploader import Uploader


def snapshot_at(step: int, val_measure: float | None = None) -> Snapshot:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = State(
        step=step, images_seen=step * 32, random_seed=0, averaged_updates=step, config=Config().model_dump(),
        manifest_digest="", undelivered=[], val_measure=val_measure,
    )  # fmt: skip
    return snapshot(state, model, model, optimizer)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Uploader, list[str]]]:
    """An uploader into the test's folder that never pauses for long, and the URLs that it says it has kept."""
    monkeypatch.setattr(uploader, "RETRY_PAUSES", (0.01,) * 5)
    kept: list[str] = []
    uploading = Uploader(str(tmp_path), 2, 1, kept.append)
    yield uploading, kept
    uploading.close()


def failing(monkeypatch: pytest.MonkeyPatch, *errors: UserError) -> list[UserError]:
    """Let the next uploads fail; gives those that are still to come."""
    coming, real = list(errors), upload

    def maybe(kept: Snapshot, url: str) -> None:
        if coming:
            raise coming.pop(0)
        real(kept, url)

    monkeypatch.setattr(uploader, "upload", maybe)
    return coming


def test_five_failures_in_a_row_are_survived_twice(
    started: tuple[Uploader, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading, kept = started
    for step in (10, 20):
        coming = failing(monkeypatch, *[UserError("storage answered 503")] * 5)
        uploading.put(snapshot_at(step))
        uploading.wait()
        assert coming == []
    assert kept == [f"{tmp_path}/{folder_name(10)}", f"{tmp_path}/{folder_name(20)}"]


def test_a_sixth_failure_ends_the_run_and_names_the_last_sound_checkpoint(
    started: tuple[Uploader, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading, _ = started
    uploading.put(snapshot_at(10))
    uploading.wait()
    failing(monkeypatch, *[UserError("storage answered 503")] * 6)
    uploading.put(snapshot_at(20))
    with pytest.raises(UserError, match=f"503; the last sound checkpoint is {tmp_path}/{folder_name(10)}"):
        uploading.wait()
    with pytest.raises(UserError, match="503"):
        uploading.put(snapshot_at(30))


def test_what_waiting_cannot_mend_ends_the_run_at_once(
    started: tuple[Uploader, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading, _ = started
    coming = failing(monkeypatch, LastingError("the disk is full"), UserError("never reached"))
    uploading.put(snapshot_at(10))
    with pytest.raises(UserError, match="the disk is full; there is no checkpoint"):
        uploading.wait()
    assert len(coming) == 1


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    uploading = Uploader(str(small_disk), 2, 0, lambda url: None)
    uploading.put(snapshot_at(10))
    uploading.wait()
    (small_disk / "filler").write_bytes(bytes(690_000))
    uploading.put(snapshot_at(20))
    with pytest.raises(
        UserError, match=f"the disk is full; .* last sound checkpoint is {small_disk}/{folder_name(10)}"
    ):
        uploading.wait()
    uploading.close()


def test_training_does_not_wait_and_the_newest_of_those_that_wait_is_kept(
    started: tuple[Uploader, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading, kept = started
    may_go_on, begun = threading.Event(), threading.Event()
    real = upload

    def slow(snapshot: Snapshot, url: str) -> None:
        begun.set()
        assert may_go_on.wait(30)
        real(snapshot, url)

    monkeypatch.setattr(uploader, "upload", slow)
    uploading.put(snapshot_at(10))
    assert begun.wait(30)
    uploading.put(snapshot_at(20))
    uploading.put(snapshot_at(30))
    assert kept == []
    may_go_on.set()
    uploading.wait()
    assert kept == [f"{tmp_path}/{folder_name(10)}", f"{tmp_path}/{folder_name(30)}"]


@pytest.mark.parametrize("fails_at", [0, 10, 20])
def test_at_the_end_what_waits_is_tried_once(
    fails_at: int,
    started: tuple[Uploader, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uploading, kept = started
    begun, ending = threading.Event(), threading.Thread(target=uploading.close)
    real, tried = upload, []

    def slow(snapshot: Snapshot, url: str) -> None:
        begun.set()
        while not uploading._closed:
            time.sleep(0.01)
        tried.append(snapshot.state.step)
        if snapshot.state.step == fails_at:
            raise UserError("storage answered 503")
        real(snapshot, url)

    monkeypatch.setattr(uploader, "upload", slow)
    uploading.put(snapshot_at(10))
    assert begun.wait(30)
    uploading.put(snapshot_at(20))
    ending.start()
    ending.join(30)
    assert tried == [10, 20]
    assert kept == [f"{tmp_path}/{folder_name(step)}" for step in (10, 20) if step != fails_at]
    warned = (
        f"warning: the checkpoint of step {fails_at} was not kept (storage answered 503)\n" in capsys.readouterr().out
    )
    assert warned == (fails_at > 0)


def test_the_newest_and_the_best_are_kept(started: tuple[Uploader, list[str]], tmp_path: Path) -> None:
    uploading, _ = started
    for step, measure in ((10, 3.0), (20, 2.0), (30, None), (40, 2.5), (50, None), (60, 2.1)):
        uploading.put(snapshot_at(step, measure))
        uploading.wait()
    assert steps_below(str(tmp_path)) == [folder_name(step) for step in (60, 50, 20)]
    later: list[str] = []
    again = Uploader(str(tmp_path), 2, 1, later.append)  # another process, which must learn the measures
    again.put(snapshot_at(70, 2.2))
    again.wait()
    again.close()
    assert steps_below(str(tmp_path)) == [folder_name(step) for step in (70, 60, 20)]


def test_what_a_killed_upload_left_goes_with_the_old_ones(tmp_path: Path) -> None:
    upload(snapshot_at(10), f"{tmp_path}/{folder_name(10)}")
    write(f"{tmp_path}/{folder_name(20)}/weights.safetensors", b"half")
    upload(snapshot_at(30), f"{tmp_path}/{folder_name(30)}")
    write(f"{tmp_path}/{folder_name(40)}/weights.safetensors", b"under way")
    remove_old(str(tmp_path), {}, newest=1, best=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder_name(30), folder_name(40)]


def test_a_snapshot_is_of_its_step_whatever_comes_after(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    state = snapshot_at(10).state
    taken = snapshot(state, model, model, optimizer)
    before = {name: tensor.clone() for name, tensor in taken.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    upload(taken, f"{tmp_path}/{folder_name(10)}")
    with newest_sound(str(tmp_path)) as found:
        assert found is not None
        assert all(torch.equal(tensor, before[name]) for name, tensor in found.weights(averaged=False).items())
    assert checkpoint.val_measures(str(tmp_path)) == {}
