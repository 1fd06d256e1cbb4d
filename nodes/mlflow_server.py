"""MLflow's server with basic auth, its passwords fetched at every start and watched for rotation."""

import json
import os
import subprocess
import urllib.parse
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from nodes.metadata import metadata
from nodes.places import ENVIRONMENT, HOME, SECRETS
from nodes.secret import read_secret, write_secret

PORT = 5000
WATCH_SECONDS = 300


def database_url(host: str, secret: str) -> str:
    """Where runs are kept: RDS's Postgres over TLS by the secret's account, or sqlite where there is no host."""
    if not host:
        return f"sqlite:///{HOME}/mlflow.db"
    account = {key: urllib.parse.quote(value, safe="") for key, value in json.loads(secret).items() if key != "port"}
    return f"postgresql+psycopg2://{account['username']}:{account['password']}@{host}:5432/mlflow?sslmode=require"


def database_secret() -> str:
    """The database's user and password as Secrets Manager has them now; empty for sqlite."""
    name = os.environ["PIXELCNN_DATABASE_SECRET"]
    return read_secret(name) if name else ""


def auth_settings(folder: Path, password: str) -> str:
    """MLflow's basic_auth.ini: one administrator, whose users' database lies in the folder.

    A password that was right counts for a minute unchecked: its scrypt would be most of the work of every request.
    """
    return (
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/mlflow-users.db\n"
        f"admin_username = admin\nadmin_password = {password}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )


def server_environment(secret: str) -> dict[str, str]:
    """Variables and files by which the server knows its database and its administrator."""
    (SECRETS / "mlflow-users.db").unlink(missing_ok=True)  # made anew, so that the password is always the present one
    write_secret(SECRETS / "mlflow-auth.ini", auth_settings(SECRETS, read_secret(os.environ["PIXELCNN_MLFLOW_SECRET"])))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(SECRETS / "mlflow-auth.ini"),
        "MLFLOW_BACKEND_STORE_URI": database_url(os.environ["PIXELCNN_DATABASE_HOST"], secret),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(32).hex(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else ten processes of 200 MB, for jobs that nobody here has
    }


def server_command(address: str, bucket: str) -> list[str]:
    """`mlflow server` for the cluster's nodes and for people behind Session Manager.

    A worker that doesn't answer for 5 s, uvicorn's default, is killed: on a busy machine before it has imported MLflow.
    """
    return [
        str(ENVIRONMENT / "bin" / "mlflow"), "server", "--app-name", "basic-auth", "--host", "0.0.0.0",
        "--port", str(PORT), "--workers", "2", "--uvicorn-opts", "--timeout-worker-healthcheck 60",
        "--artifacts-destination", f"s3://{bucket}/artifacts",
        "--allowed-hosts", f"{address}:{PORT},{address},localhost:{PORT},localhost,127.0.0.1:{PORT},127.0.0.1",
    ]  # fmt: skip


def is_rotated(secret: str) -> bool:
    """Whether the database has another password now; not while Secrets Manager can't be asked."""
    try:
        return database_secret() != secret
    except (BotoCoreError, ClientError) as error:
        print(f"the database's password can't be asked for ({error}); asked again in {WATCH_SECONDS} s", flush=True)
        return False


def serve(command: list[str], environment: dict[str, str], secret: str) -> None:
    """Run the server until it ends or the database's password is another one."""
    with subprocess.Popen(command, env=environment) as server:
        while server.poll() is None:
            try:
                server.wait(WATCH_SECONDS)
            except subprocess.TimeoutExpired:
                if is_rotated(secret):
                    print("the database's password was rotated; starting again with the new one", flush=True)
                    server.terminate()


def main() -> None:
    """Serve; systemd starts what has ended again."""
    secret = database_secret()
    command = server_command(metadata("local-ipv4") or "127.0.0.1", os.environ["PIXELCNN_BUCKET"])
    serve(command, os.environ | server_environment(secret), secret)


if __name__ == "__main__":
    main()
