"""What runs on machines and needs none: idle guard, metrics, shard cache, the database's URL, Ray's starts."""

import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from nodes import idle_guard, instance_store, metrics, mlflow_server, ray_node
from tests.conftest import free_port


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a program on PATH that notes its words, then does what a line of shell says."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    def make(name: str, line: str = "true") -> Path:
        noted, program = tmp_path / f"{name}-words", tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "$@" >> {noted}\n{line}\n')
        program.chmod(0o755)
        return noted

    return make


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """States of the jobs that the head's dashboard tells, one list after the other, to whoever has the token."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.path == "/api/jobs/" and self.headers["Authorization"] == "Bearer secret"
            self.send_response(200 if allowed and told else 403)
            self.end_headers()
            if allowed and told:
                states = told.pop(0) if len(told) > 1 else told[0]
                self.wfile.write(json.dumps([{"status": state} for state in states.split()]).encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("secret\n")
    for module in (idle_guard, metrics):
        monkeypatch.setattr(module, "DASHBOARD", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(idle_guard, "RAY_TOKEN", tmp_path / "token")
    yield told
    server.shutdown()
    server.server_close()


def test_idle_guard_shuts_down_only_after_the_hours_without_work(
    jobs: list[str], stand_in: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown, hours = stand_in("shutdown", "true"), iter(range(100))
    monkeypatch.setenv("PIXELCNN_IDLE_GUARD_HOURS", "2")
    monkeypatch.setattr(idle_guard.time, "monotonic", lambda: 3600.0 * next(hours))
    monkeypatch.setattr(idle_guard.time, "sleep", lambda _: None)
    jobs += ["SUCCEEDED", "PENDING", "RUNNING FAILED", "STOPPED", "STOPPED", ""]
    idle_guard.main()
    assert shutdown.read_text() == "-h now\n"
    assert next(hours) == 7  # work was last seen at 3 hours; 6 is the first that is more than 2 after it


def test_idle_guard_takes_a_head_that_does_not_answer_for_one_at_work(jobs: list[str]) -> None:
    assert idle_guard.idle_seconds(0, 7200, None) == idle_guard.idle_seconds(0, 7200, 3) == 0
    assert idle_guard.idle_seconds(0, 7200, 0) == 7200
    assert metrics.known_jobs_at_work() is None
    jobs.append("RUNNING PENDING SUCCEEDED")
    assert metrics.known_jobs_at_work() == 2


def test_metrics_of_each_role(jobs: list[str], stand_in: Callable[[str, str], Path]) -> None:
    jobs.append("RUNNING")
    stand_in("nvidia-smi", "echo 3; echo 97")
    worker = metrics.measure("worker")
    assert (worker.keys(), worker["GpuUsedPercent"]) == ({"DiskUsedPercent", "GpuUsedPercent"}, 97)
    head = metrics.measure("head")
    assert (head["RayAlive"], head["JobsAtWork"]) == (0, 1)  # the stand-in doesn't tell its health
    assert metrics.measure("mlflow").keys() == {"DiskUsedPercent"}


@pytest.mark.parametrize(("model", "made"), [(instance_store.MODEL, True), ("Amazon Elastic Block Store", False)])
def test_shard_cache_is_the_instances_own_disk_or_a_folder(
    model: str, made: bool, stand_in: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "shards"
    monkeypatch.setattr(instance_store, "SHARD_CACHE", cache)
    disks = {"blockdevices": [{"path": "/dev/nvme0n1", "model": None}, {"path": "/dev/nvme1n1", "model": f"{model} "}]}
    stand_in("lsblk", f"echo '{json.dumps(disks)}'")
    mkfs, mount, chown = (stand_in(name, "true") for name in ("mkfs.ext4", "mount", "chown"))
    instance_store.mount_shard_cache()
    assert cache.is_dir()
    assert chown.read_text() == f"pixelcnn:pixelcnn {cache}\n"
    assert mkfs.exists() == mount.exists() == made
    if made:
        assert mkfs.read_text() == "-q -F /dev/nvme1n1\n"
        assert mount.read_text() == f"-o noatime /dev/nvme1n1 {cache}\n"


def test_database_url_is_tls_and_takes_any_password() -> None:
    secret = json.dumps({"username": "mlflow", "password": "a/b:c@d e%", "port": 5432})
    url = mlflow_server.database_url("db.example", secret)
    assert url == "postgresql+psycopg2://mlflow:a%2Fb%3Ac%40d%20e%25@db.example:5432/mlflow?sslmode=require"
    assert mlflow_server.database_url("", "").startswith("sqlite:////")


def test_a_rotated_password_ends_the_server_also_where_secrets_manager_was_away_before(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    away = EndpointConnectionError(endpoint_url="https://secretsmanager")
    answers = itertools.chain([away, "old"], itertools.repeat("new"))

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(mlflow_server, "database_secret", ask)
    monkeypatch.setattr(mlflow_server, "WATCH_SECONDS", 0.1)
    mlflow_server.serve(["sleep", "250"], dict(os.environ), "old")
    first, second, *_ = capfd.readouterr().out.splitlines()
    assert first.startswith("the database's password can't be asked for (Could not connect to the endpoint URL: ")
    assert second == "the database's password was rotated; starting again with the new one"


@pytest.mark.parametrize(("node_at", "starts"), [(1, 1), (2, 2), (9, 3)])
def test_ray_is_started_anew_until_there_is_a_node(
    node_at: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a program that stays, as `ray start --block` does, whatever becomes of what is called raylet below it."""
    shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet")
    program, noted, port = tmp_path / "ray", tmp_path / "starts", free_port()
    program.write_text(f"""#!/bin/sh
echo >> {noted}
if [ $(wc -l < {noted}) = {node_at} ]; then
  {sys.executable} -m http.server --bind 127.0.0.1 {port} &
  {tmp_path}/raylet 5 &
else
  {tmp_path}/raylet 1 &
fi
sleep 60
""")
    program.chmod(0o755)
    monkeypatch.setattr(ray_node, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(ray_node, "METRICS_PORT", port)
    assert ray_node.stay([str(program)], dict(os.environ)) != 0
    assert noted.read_text().count("\n") == starts
    assert capsys.readouterr().out.count("Ray did not come up") == min(node_at - 1, 3)
