"""A real `mlflow server` for tests, that can be killed and started again on its port."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import free_port, listening, wait_until


class Server:
    """`mlflow server` on sqlite and a folder, or as the words and the environment have it."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder, self.process = free_port(), folder, None
        self.uri = f"http://127.0.0.1:{self.port}"
        self.environment: dict[str, str] = {}
        self.words: Sequence[str | Path] = (
            "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", folder / "served",
        )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it listens."""
        command, environment = [sys.executable, "-m", "mlflow", *self.words], os.environ | self.environment
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: listening(self.port), 180, "mlflow server")

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self.process:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None
            wait_until(lambda: not listening(self.port), 30, "mlflow server's end")
