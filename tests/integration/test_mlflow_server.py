"""Tracking against MLflow's server as production runs it: Postgres, artifacts on S3, basic auth, many writers."""

import io
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from PIL import Image

from nodes.mlflow_server import auth_settings, server_command
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import load_manifest
from pipeline.mlflow_run import require_server
from pipeline.run_identity import RunIdentity, identify
from pipeline.tracking import Tracker
from tests.conftest import S3Server, free_port, listening, wait_until
from tests.mlflow_server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WRITERS, STEPS, IMAGE_STEPS = 8, 200, (50, 100, 150, 200)
PASSWORD = "not-the-default-one"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def database(folder: Path) -> Iterator[str]:
    """An empty Postgres where Debian's package is installed, else a sqlite file."""
    if not POSTGRES:
        yield f"sqlite:///{folder}/runs.db"
        return
    # Postgres refuses to run as root, and pytest's folders are closed to other users.
    programs, home, port = POSTGRES[-1].parent, Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if other:
        shutil.chown(home, "postgres")
    make = [*other, programs / "initdb", "-D", home / "data", "-U", "mlflow", "--auth", "trust"]
    serve = [*other, programs / "postgres", "-D", home / "data", "-k", home, "-h", "127.0.0.1", "-p", str(port)]
    with open(folder / "postgres.log", "ab") as log:
        subprocess.run(make, stdout=log, stderr=log, cwd="/", check=True)
        server = subprocess.Popen(serve, stdout=log, stderr=log, cwd="/")
    try:
        wait_until(lambda: listening(port), 30, "postgres")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def server(folder: Path, database: str, s3_server: S3Server) -> Iterator[Server]:
    """MLflow's server by production's command line and settings."""
    one = Server(folder)
    _, *words = server_command("127.0.0.1", s3_server.bucket)
    one.words = [word.replace("0.0.0.0", "127.0.0.1").replace("5000", str(one.port)) for word in words]
    (folder / "auth.ini").write_text(auth_settings(folder, PASSWORD))
    one.environment = s3_server.environment | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test",
    }  # fmt: skip
    try:
        one.start()
        yield one
    finally:
        one.kill()


@pytest.fixture(autouse=True)
def user(server: Server, tracked_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's user in this process's environment, as on production's nodes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def bits_at(step: int) -> float:
    return 8.0 / step


def images_at(step: int) -> float:
    return 64.0 * step


def write_run(identity: RunIdentity) -> None:
    """What one training would track, at ten entries a second."""
    picture = io.BytesIO()
    Image.new("L", (64, 64), 128).save(picture, "PNG")
    tracker = Tracker(identity)
    for step in range(1, STEPS + 1):
        tracker.metrics(step, {"train/bits_per_dim": bits_at(step), "images_seen": images_at(step)})
        if step in IMAGE_STEPS:
            tracker.image(step, "samples", picture.getvalue())
        time.sleep(0.1)
    tracker.close("FINISHED")


def runs() -> list[Run]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("pixelcnn-ray")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def images_of(run: Run) -> list[str]:
    return sorted(artifact.path for artifact in mlflow.MlflowClient().list_artifacts(run.info.run_id, "images"))


def kill_once(server: Server, s3: S3Server, files: int) -> None:
    """SIGKILL once so many files of images lie on S3, and a start three seconds later."""
    wait_until(lambda: len(list(s3.root.rglob("artifacts/**/images/*"))) >= files, 120, f"{files} files of images")
    server.kill()
    time.sleep(3)
    server.start()


def test_a_killed_server_costs_eight_writers_nothing(digits: Config, server: Server, s3_server: S3Server) -> None:
    manifest, context = load_manifest(digits, "train"), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch and mlflow are imported once, not eight times
    identities = [identify(digits, manifest, f"{digits.run.url}/{number}", "abc123") for number in range(WRITERS)]
    writers = [context.Process(target=write_run, args=(identity,)) for identity in identities]
    for writer in writers:
        writer.start()
    kill_once(server, s3_server, 10)
    kill_once(server, s3_server, 30)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    found, client = runs(), mlflow.MlflowClient()
    assert sorted(run.data.tags["run_url"] for run in found) == sorted(one.run_url for one in identities)
    for run in found:
        assert run.info.status == "FINISHED"
        for key, value in (("train/bits_per_dim", bits_at), ("images_seen", images_at)):
            told = client.get_metric_history(run.info.run_id, key)
            assert [(one.step, one.value) for one in told] == [(step, value(step)) for step in range(1, STEPS + 1)]
        pictures = [path.split("+timestamp")[0] + Path(path).suffix for path in images_of(run)]
        wanted = [f"images/samples+step+{step}{suffix}" for step in IMAGE_STEPS for suffix in (".png", ".webp")]
        assert sorted(pictures) == sorted(wanted)


def test_a_wrong_password_is_told_by_the_variables_that_hold_it(
    digits: Config, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    with pytest.raises(UserError, match=r"refuses MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD; correct them"):
        require_server(server.uri)
    tracker = Tracker(identify(digits, load_manifest(digits, "train"), f"{digits.run.url}/a", "abc123"))
    told: list[str] = []
    wait_until(lambda: told.append(capsys.readouterr().out) or "training goes on" in "".join(told), 60, "the warning")
    tracker.close(None)
    assert "refuses MLFLOW_TRACKING_USERNAME" in "".join(told)
