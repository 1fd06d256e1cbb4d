"""Hosts on one machine: network namespaces on a bridge, each with an address and a Ray node, and what breaks them.

For tests and benchmarks/faults.py. Object storage (rclone) and MLflow run outside, at the bridge's own address.
"""

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import wait_until

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
INTERFACE = "eth0"
S3_PORT, MLFLOW_PORT, GCS_PORT, DASHBOARD_PORT = 9000, 5000, 6379, 8265
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


LIST_ALIVE = """
import ray
ray.init(log_to_driver=False)
print("alive", *(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
"""

DRAIN = """
import sys, time, ray
from ray.core.generated import autoscaler_pb2
address, node, seconds = sys.argv[1:]
client, said = ray._raylet.GcsClient(address=address), time.monotonic()
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
accepted, why = client.drain_node(node, reason, "test", time.time_ns() // 1_000_000 + 1000 * int(seconds))
assert accepted, why
print("drained", said)
"""


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


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """End a process that was started as the leader of a session, with its whole session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(timeout=60)


@dataclass
class Job:
    """A process on a host, and its lines with the time at which each came."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def told(self) -> str:
        """Everything that it has printed."""
        return "\n".join(line for _, line in list(self.lines))

    def steps(self) -> list[tuple[float, int]]:
        """Times and numbers of the steps that it has told of."""
        return Job.steps_in(list(self.lines))

    @staticmethod
    def steps_in(lines: list[tuple[float, str]]) -> list[tuple[float, int]]:
        """Times and numbers of the steps that lines tell of."""
        found = [(when, re.match(r"step ([\d,]+)/", line)) for when, line in lines]
        return [(when, int(match.group(1).replace(",", ""))) for when, match in found if match]

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until it has printed something, or fail with what it printed instead."""

        def there() -> bool:
            assert self.process.poll() is None or text in self.told, f"no {text!r} in:\n{self.told}"
            return text in self.told

        wait_until(there, seconds, text)

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Wait until a step is reached."""

        def there() -> bool:
            reached = max((number for _, number in self.steps()), default=0)
            assert self.process.poll() is None or reached >= step, f"step {reached}, then:\n{self.told}"
            return reached >= step

        wait_until(there, seconds, f"step {step}")

    def end(self, seconds: float = 280) -> int:
        """Its exit status, once it has ended."""
        try:
            status = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {seconds:g} s:\n{self.told}") from None
        self._thread.join(10)
        return status


class Host:
    """One network namespace: `eth0` with an address on the bridge, and at most one Ray node."""

    def __init__(self, hosts: "Hosts", number: int) -> None:
        self.hosts, self.number = hosts, number
        self.namespace = f"{hosts.name}h{number}"
        self.address = f"{hosts.subnet}.{number + 1}"
        self._outer = f"{hosts.name}v{number}"
        self.node: subprocess.Popen[str] | None = None
        ip("netns", "add", self.namespace)
        ip("link", "add", self._outer, "type", "veth", "peer", "name", INTERFACE, "netns", self.namespace)
        ip("link", "set", self._outer, "master", hosts.bridge, "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", INTERFACE)
        ip("-n", self.namespace, "link", "set", INTERFACE, "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")

    def start(self, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start a process on this host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *map(str, words)], cwd=ROOT, text=True, start_new_session=True,
            env=self.hosts.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def job(self, *words: str, **environment: str) -> Job:
        """Start `python -m WORDS` on this host as a driver."""
        address = {"RAY_ADDRESS": f"{self.hosts[0].address}:{GCS_PORT}"}
        return Job(self.start(sys.executable, "-u", "-m", *words, **(address | environment)))

    def start_node(self, cpus: int = 1) -> None:
        """Start this host's Ray node; the first host's is the head."""
        role = ["--address", f"{self.hosts[0].address}:{GCS_PORT}"]
        if self.number == 0:
            role = ["--head", "--port", str(GCS_PORT), "--dashboard-host", self.address]
            role += ["--dashboard-port", str(DASHBOARD_PORT)]
        log = self.hosts.folder / f"node-{self.number}.log"
        command = [
            BIN / "ray", "start", *role, "--block", "--node-ip-address", self.address, "--num-cpus", str(cpus),
            "--object-store-memory", "100000000", "--temp-dir", f"/tmp/{self.namespace}", "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("w") as output:
            self.node = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *map(str, command)], cwd=ROOT, text=True,
                start_new_session=True, env=self.hosts.environment, stdout=output, stderr=output,
            )  # fmt: skip

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Processes of this host whose command line begins with or names a program."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        found = []
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if name in " ".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """This host's Ray Train workers."""
        return self.processes("RayTrainWorker")

    def node_id(self) -> str:
        """Ray's id of this host's node."""
        (raylet,) = self.processes("/raylet")
        words = raylet.cmdline()
        return next(word.split("=", 1)[1] for word in words if word.startswith("--node_id="))

    def kill_raylet(self) -> None:
        """SIGKILL of the raylet, as a machine's sudden end; its workers die of it."""
        for process in self.processes("/raylet"):
            process.kill()
        self._forget_node()

    def kill(self) -> None:
        """SIGKILL of everything on this host."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._forget_node()

    def _forget_node(self) -> None:
        if self.node:
            end(self.node)
            self.node = None
        for process in self.processes():
            if "ray" in " ".join(process.cmdline()[:4]).lower() and "jobs." not in " ".join(process.cmdline()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def drain(self, seconds: int) -> float:
        """Say, as `ray drain-node` does, that this host goes in so many seconds; gives when it was said."""
        address = f"{self.hosts[0].address}:{GCS_PORT}"
        drained = self.hosts[0].start(sys.executable, "-c", DRAIN, address, self.node_id(), str(seconds))
        told, _ = drained.communicate(timeout=60)
        match = re.search(r"^drained ([\d.]+)$", told, re.MULTILINE)
        assert match, told
        return float(match.group(1))

    def cut(self) -> None:
        """Take its link down."""
        ip("link", "set", self._outer, "down")

    def mend(self) -> None:
        """Bring its link up."""
        ip("link", "set", self._outer, "up")

    @contextlib.contextmanager
    def shaped(self, *words: str) -> Iterator[None]:
        """Send through a queue of the kernel's, e.g. "netem", "delay", "200ms", "loss", "5%"."""
        self._tc("add", *words)
        try:
            yield
        finally:
            self._tc("del")

    def can_be_shaped(self, *words: str) -> bool:
        """Whether this machine's kernel has such a queue."""
        try:
            with self.shaped(*words):
                return True
        except subprocess.CalledProcessError:
            return False

    def _tc(self, what: str, *words: str) -> None:
        subprocess.run(
            ["ip", "netns", "exec", self.namespace, "tc", "qdisc", what, "dev", INTERFACE, "root", *words],
            check=True, capture_output=True,
        )  # fmt: skip

    def remove(self) -> None:
        """End everything on it and take it away."""
        self.kill()
        ip("netns", "del", self.namespace)
        shutil.rmtree(f"/tmp/{self.namespace}", ignore_errors=True)


class Hosts:
    """A bridge, hosts on it, and what they share: object storage, MLflow, a small disk."""

    def __init__(self, folder: Path, number: int) -> None:
        """Args: a folder for logs and data; a number 0 to 255 that no other such cluster of this machine has."""
        self.folder, self.name, self.subnet = folder, f"pix{number}", f"10.78.{number}"
        self.bridge, self.services = f"{self.name}br", f"{self.subnet}.254"
        self.hosts: list[Host] = []
        self._s3: subprocess.Popen[str] | None = None
        self._mlflow: subprocess.Popen[str] | None = None
        self.mlflow_uri = f"http://{self.services}:{MLFLOW_PORT}"
        self.environment = {
            **os.environ, **NODE_SETTINGS, "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "GLOO_SOCKET_IFNAME": INTERFACE, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{self.services}:{S3_PORT}",
            "MLFLOW_TRACKING_URI": self.mlflow_uri, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        for variable in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            self.environment.pop(variable, None)
        (folder / "home").mkdir(parents=True, exist_ok=True)
        (folder / "s3" / "bucket").mkdir(parents=True, exist_ok=True)
        self.disk = folder / "disk"
        self.disk.mkdir(
            exist_ok=True
        )  # mounted before anything runs: `ip netns exec` gives processes mounts of their own
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", self.disk], check=True)
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.services}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def add(self) -> Host:
        """One more host, without a node."""
        self.hosts.append(Host(self, len(self.hosts)))
        return self.hosts[-1]

    def _serve(self, *words: str | Path) -> subprocess.Popen[str]:
        with (self.folder / f"{Path(words[0]).name}.log").open("a") as log:
            return subprocess.Popen(
                list(map(str, words)), env=self.environment, stdout=log, stderr=log, text=True, start_new_session=True,
                cwd=self.folder,
            )  # fmt: skip

    def _answers(self, port: int) -> bool:
        with contextlib.closing(socket.socket()) as client:
            client.settimeout(1)
            return client.connect_ex((self.services, port)) == 0

    def start_s3(self, secret: str = "secret") -> None:
        """Object storage for all hosts; with another secret it refuses their credentials."""
        address = f"{self.services}:{S3_PORT}"
        self._s3 = self._serve(
            BIN / "rclone", "serve", "s3", "--addr", address, "--auth-key", f"key,{secret}", self.folder / "s3"
        )
        wait_until(lambda: self._answers(S3_PORT), 30, "rclone serve s3")

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
        wait_until(lambda: self._answers(MLFLOW_PORT), 120, "the MLflow server")

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
        wait_until(self._head_answers, 60, "the head")

    def wait_for_nodes(self, count: int) -> None:
        """Wait until Ray has exactly so many nodes."""
        wait_until(lambda: len(self.alive()) == count, 90, f"{count} nodes")

    def _head_answers(self) -> bool:
        head = self[0].start(BIN / "ray", "health-check", "--address", f"{self[0].address}:{GCS_PORT}")
        head.communicate(timeout=60)
        return head.returncode == 0

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray believes to be alive."""
        asked = self[0].start(sys.executable, "-c", LIST_ALIVE, RAY_ADDRESS=f"{self[0].address}:{GCS_PORT}")
        told, _ = asked.communicate(timeout=60)
        match = re.search(r"^alive (.*)$", told, re.MULTILINE)
        return match.group(1).split() if match else []

    def remove(self) -> None:
        """End what was started here and take the hosts away."""
        for server in (self._s3, self._mlflow):
            if server:
                end(server)
        for host in self.hosts:
            host.remove()
        ip("link", "del", self.bridge)
        subprocess.run(["umount", self.disk], check=True)


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
