"""MLflow's server with basic auth, its passwords fetched at every start and watched for rotation."""

import json
import os
import subprocess
import time
import urllib.parse

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


def server_environment(secret: str) -> dict[str, str]:
    """Variables and files by which the server knows its database and its administrator."""
    (SECRETS / "mlflow-users.db").unlink(missing_ok=True)  # made anew, so that the password is always the present one
    write_secret(
        SECRETS / "mlflow-auth.ini",
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{SECRETS}/mlflow-users.db\n"
        f"admin_username = admin\nadmin_password = {read_secret(os.environ['PIXELCNN_MLFLOW_SECRET'])}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(SECRETS / "mlflow-auth.ini"),
        "MLFLOW_BACKEND_STORE_URI": database_url(os.environ["PIXELCNN_DATABASE_HOST"], secret),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(32).hex(),
    }


def server_command(address: str, bucket: str) -> list[str]:
    """`mlflow server` for the cluster's nodes and for people behind Session Manager."""
    return [
        str(ENVIRONMENT / "bin" / "mlflow"), "server", "--app-name", "basic-auth", "--host", "0.0.0.0",
        "--port", str(PORT), "--workers", "2", "--artifacts-destination", f"s3://{bucket}/artifacts",
        "--allowed-hosts", f"{address}:{PORT},{address},localhost:{PORT},localhost,127.0.0.1:{PORT},127.0.0.1",
    ]  # fmt: skip


def main() -> None:
    """Serve until the server ends or the database's password is another one; systemd starts it again."""
    secret = database_secret()
    command = server_command(metadata("local-ipv4") or "127.0.0.1", os.environ["PIXELCNN_BUCKET"])
    with subprocess.Popen(command, env=os.environ | server_environment(secret)) as server:
        while server.poll() is None:
            try:
                server.wait(WATCH_SECONDS)
            except subprocess.TimeoutExpired:
                if database_secret() != secret:
                    print("the database's password was rotated; starting again with the new one", flush=True)
                    server.terminate()
        time.sleep(1)


if __name__ == "__main__":
    main()
