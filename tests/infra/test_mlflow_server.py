"""The MLflow server's own start, with a Postgres that takes TLS alone as RDS's does, and its passwords from moto."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes import mlflow_server
from tests.conftest import free_port, listening_at, wait_until
from tests.infra.conftest import Moto

pytestmark = [pytest.mark.infra, pytest.mark.timeout(400)]

ADDRESS = "127.0.0.77"
"""Port 5432 of an address of its own, as the URL names no other port."""
PASSWORD = "a/b:c@d%e"


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Path]:
    """The folder of Debian's Postgres' socket; everything but the socket wants TLS and the password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs or not shutil.which("openssl") or os.geteuid() != 0:
        pytest.skip("Postgres (Debian's package) is not here, or openssl, or this isn't root")
    data, home = tmp_path / "data", programs[-1].parent
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o711)
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")

    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def run(*words: str) -> None:
        subprocess.run([*as_postgres, *words], check=True, cwd=data, capture_output=True)

    (data / "password").write_text(PASSWORD)
    (data / "password").chmod(0o644)
    made = data / "cluster"
    run(str(home / "initdb"), "-D", str(made), "--username=mlflow", "--pwfile", str(data / "password"), "--no-sync")
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={ADDRESS}", "-days", "1",
        "-keyout", str(made / "server.key"), "-out", str(made / "server.crt"))  # fmt: skip
    (made / "pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
    settings = {"listen_addresses": ADDRESS, "ssl": "on", "unix_socket_directories": str(data), "fsync": "off"}
    server = subprocess.Popen(
        [*as_postgres, home / "postgres", "-D", made, *(f"--{key}={value}" for key, value in settings.items())],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: listening_at(ADDRESS, 5432), 60, "Postgres")
        run(str(home / "createdb"), "--host", str(data), "--username", "mlflow", "mlflow")
        yield data
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def server(postgres: Path, moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of MLflow's server as nodes/mlflow_server.py starts it."""
    port = free_port()
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    for name, value in {"SECRETS": tmp_path / "secrets", "ENVIRONMENT": Path(sys.prefix), "PORT": port}.items():
        monkeypatch.setattr(mlflow_server, name, value)
    secrets = moto.client("secretsmanager")
    secrets.create_secret(Name="test/mlflow", SecretString="administrators-password")
    secrets.create_secret(
        Name="test/database", SecretString=json.dumps({"username": "mlflow", "password": PASSWORD})
    )  # fmt: skip
    monkeypatch.setenv("PIXELCNN_MLFLOW_SECRET", "test/mlflow")
    monkeypatch.setenv("PIXELCNN_DATABASE_SECRET", "test/database")
    monkeypatch.setenv("PIXELCNN_DATABASE_HOST", ADDRESS)
    environment = os.environ | mlflow_server.server_environment(mlflow_server.database_secret())
    command = [*mlflow_server.server_command("127.0.0.1", "none"), "--workers", "1"]
    with (tmp_path / "mlflow.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: listening_at("127.0.0.1", port), 180, "MLflow's server")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)
            for name in ("test/mlflow", "test/database"):  # moto is the whole session's
                secrets.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)


def test_runs_are_kept_in_postgres_over_tls_behind_the_password(
    server: str, postgres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "administrators-password")
    log = "import mlflow; run = mlflow.start_run(run_name='kept'); mlflow.log_metric('val/bits_per_dim', 3.0)"
    environment = os.environ | {"MLFLOW_TRACKING_URI": server}
    subprocess.run([sys.executable, "-c", log], env=environment, check=True, capture_output=True)

    def told(query: str) -> str:
        command = [
            "psql",
            "--host",
            postgres,
            "--username",
            "mlflow",
            "--tuples-only",
            "--no-align",
            "-c",
            query,
            "mlflow",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert told("select name from runs") == "kept"
    assert told("select key, value from metrics") == "val/bits_per_dim|3"
    # Whoever isn't on the socket speaks TLS.
    over_tls = "select distinct ssl from pg_stat_ssl join pg_stat_activity using (pid) where client_addr is not null"
    assert told(over_tls) == "t"
