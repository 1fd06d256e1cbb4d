"""Hosts on one machine: network namespaces on a bridge, each with an address and a Ray node, and what breaks them.

For tests and benchmarks/faults.py. Object storage (rclone) and MLflow run outside, at the bridge's own address.
"""

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.conftest import BIN, PATIENCE, wait_until
from tests.host import DASHBOARD_PORT, INTERFACE, MLFLOW_PORT, ROOT, S3_PORT, Host, Network, end, ip

NODE_SETTINGS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_actor_graceful_shutdown_timeout_ms": "5000",
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
    "RAY_worker_niceness": "0",
}
"""What docs/reliability.md advises for `ray start`; no niceness, as other work here would starve workers."""

TOKEN = "0123456789abcdef" * 4


def why_not() -> str | None:
    """What this machine lacks for such hosts, None if nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "network namespaces need iproute2 (ip, tc)"
    name = f"pixtry{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine allows no network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


def free_number() -> int:
    """A number for Hosts that none has that runs, or that was killed and left its network or its servers behind."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    words = {word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or []}
    return next(
        number
        for number in range(256)
        if f"pix{number}br" not in links and not any(f"10.78.{number}.254" in word for word in words)
    )


class Hosts:
    """A bridge, hosts on it, and what they share: object storage, MLflow, a small disk."""

    def __init__(self, folder: Path, number: int) -> None:
        """Args: a folder for logs and data; a number 0 to 255 that no other such cluster of this machine has."""
        self.folder, self.services = folder, f"10.78.{number}.254"
        self.hosts: list[Host] = []
        self._s3: subprocess.Popen[str] | None = None
        self._mlflow: subprocess.Popen[str] | None = None
        self.mlflow_uri = f"http://{self.services}:{MLFLOW_PORT}"
        environment = {
            **os.environ, **NODE_SETTINGS, "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
            "GLOO_SOCKET_IFNAME": INTERFACE, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{self.services}:{S3_PORT}",
            "MLFLOW_TRACKING_URI": self.mlflow_uri, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1",
            "IMAGES_FOLDER": str(folder / "images"),
        }  # fmt: skip
        for variable in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            environment.pop(variable, None)
        self.network = Network(f"pix{number}", folder, environment)
        (folder / "home").mkdir(parents=True, exist_ok=True)
        (folder / "s3" / "bucket").mkdir(parents=True, exist_ok=True)
        self.disk = folder / "disk"
        self.disk.mkdir(
            exist_ok=True
        )  # mounted before anything runs: `ip netns exec` gives processes mounts of their own
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", self.disk], check=True)
        ip("link", "add", self.network.bridge, "type", "bridge")
        ip("addr", "add", f"{self.services}/24", "dev", self.network.bridge)
        ip("link", "set", self.network.bridge, "up")

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def add(self) -> Host:
        """One more host, without a node."""
        self.hosts.append(Host(self.network, len(self.hosts)))
        return self.hosts[-1]

    def _serve(self, *words: str | Path) -> subprocess.Popen[str]:
        with (self.folder / f"{Path(words[0]).name}.log").open("a") as log:
            return subprocess.Popen(
                list(map(str, words)), env=self.network.environment, stdout=log, stderr=log, text=True,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def _answers(self, server: subprocess.Popen[str], port: int) -> bool:
        """Whether our own server does, rather than one that a killed rig left on this address."""
        assert server.poll() is None, f"{server.args} has ended; see the logs in {self.folder}"
        with contextlib.closing(socket.socket()) as client:
            client.settimeout(1)
            return client.connect_ex((self.services, port)) == 0

    def start_s3(self, secret: str = "secret") -> None:
        """Object storage for all hosts; with another secret it refuses their credentials."""
        address = f"{self.services}:{S3_PORT}"
        self._s3 = self._serve(
            BIN / "rclone", "serve", "s3", "--addr", address, "--auth-key", f"key,{secret}", self.folder / "s3"
        )
        wait_until(lambda: self._answers(self._s3, S3_PORT), PATIENCE, "rclone serve s3")

    def stop_s3(self) -> None:
        """Object storage is gone."""
        assert self._s3
        end(self._s3)

    @contextlib.contextmanager
    def s3_answers_503(self) -> Iterator[None]:
        """Object storage that refuses every request as too busy."""
        self.stop_s3()
        server = http.server.ThreadingHTTPServer((self.services, S3_PORT), _Busy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            self.start_s3()

    def start_mlflow(self) -> None:
        """The tracking server for all hosts."""
        self._mlflow = self._serve(
            BIN / "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", f"{self.folder}/mlartifacts", "--host", self.services, "--port",
            str(MLFLOW_PORT), "--workers", "1", "--allowed-hosts", "*",
        )  # fmt: skip
        wait_until(lambda: self._answers(self._mlflow, MLFLOW_PORT), PATIENCE, "the MLflow server")

    def stop_mlflow(self) -> None:
        """The tracking server is gone."""
        assert self._mlflow
        end(self._mlflow)

    def start_nodes(self, count: int) -> None:
        """Ray's nodes on the first hosts; returns when all have joined."""
        for host in self.hosts[:count]:
            host.start_node()
            if host.number == 0:
                self.wait_for_head()
        self.wait_for_nodes(count)

    def wait_for_head(self) -> None:
        """Wait until the head answers."""
        wait_until(self._head_answers, PATIENCE, "the head")

    def wait_for_nodes(self, count: int) -> None:
        """Wait until Ray has exactly so many nodes."""
        wait_until(lambda: self._are_there(count), PATIENCE, f"{count} nodes")

    def _are_there(self, count: int) -> bool:
        self._start_anew()
        return len(self.alive()) == count

    def _start_anew(self) -> None:
        """Start nodes again that have ended by themselves: Ray gives one up whose agent is not up within 15 s."""
        for host in self.hosts:
            if host.node and host.node.poll() is not None:
                host.start_node()

    def _head_answers(self) -> bool:
        self._start_anew()
        head = self[0].start(BIN / "ray", "health-check", "--address", self.network.gcs)
        head.communicate(timeout=PATIENCE)
        return head.returncode == 0

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray believes to be alive; none while the head's dashboard doesn't answer."""
        asked = urllib.request.Request(
            f"http://{self[0].address}:{DASHBOARD_PORT}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except OSError:
            return []
        return [node["node_ip"] for node in nodes if node["state"] == "ALIVE"]

    def remove(self) -> None:
        """End what was started here and take the hosts away; what fails keeps nothing of the rest, and is raised."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(subprocess.run, ["umount", self.disk], check=True)
            last_first.callback(ip, "link", "del", self.network.bridge)
            for host in self.hosts:
                last_first.callback(host.remove)
            for server in filter(None, (self._s3, self._mlflow)):
                last_first.callback(end, server)


class _Busy(http.server.BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        content = b"<Error><Code>SlowDown</Code></Error>"
        self.send_response(503)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _refuse

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def cluster_of_hosts(folder: Path, number: int, count: int = 3, spare: int = 0) -> Iterator[Hosts]:
    """Hosts with Ray nodes, `spare` ones without, object storage and MLflow; all is ended afterwards."""
    hosts = Hosts(folder, number)
    try:
        hosts.start_s3()
        hosts.start_mlflow()
        for _ in range(count + spare):
            hosts.add()
        hosts.start_nodes(count)
        yield hosts
    finally:
        hosts.remove()
