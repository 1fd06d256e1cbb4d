"""Secrets: from Secrets Manager into files of their own, never into a command line, a log or the environment."""

import os
from pathlib import Path

import boto3

from nodes.places import HOME, RAY_TOKEN


def read_secret(name: str) -> str:
    """The present value of a secret, by the machine's own role."""
    return str(boto3.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    part.replace(path)


def main() -> None:
    """Ray's token, and MLflow's password where MLflow's client looks for it."""
    write_secret(RAY_TOKEN, read_secret(os.environ["PIXELCNN_RAY_SECRET"]))
    password = read_secret(os.environ["PIXELCNN_MLFLOW_SECRET"])
    write_secret(
        HOME / ".mlflow" / "credentials",
        f"[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = {password}\n",
    )


if __name__ == "__main__":
    main()
