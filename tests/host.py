"""One host on this machine: a network namespace with an address, a Ray node and jobs, and what breaks them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import BIN, processes_named, wait_until

ROOT = Path(__file__).parents[1]
INTERFACE = "eth0"
S3_PORT, MLFLOW_PORT, GCS_PORT, DASHBOARD_PORT = 9000, 5000, 6379, 8265

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

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Processes that it started, and those of theirs, whose command line begins with or names a program."""
        return processes_named(name, [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)])

    def workers(self) -> list[psutil.Process]:
        """The Ray Train workers of a cluster that it started."""
        return self.processes("RayTrainWorker")

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until it has printed something, or fail with what it printed instead; it must be running then."""

        def there() -> bool:
            assert self.process.poll() is None, f"ended before it printed {text!r} or since:\n{self.told}"
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

    def must_end(self, seconds: float = 280) -> None:
        """Wait for its end, and fail with its status and what it printed if that is none of success."""
        status = self.end(seconds)
        assert status == 0, f"ended with status {status}:\n{self.told}"


@dataclass(frozen=True)
class Network:
    """What hosts share: a bridge, a subnet, the environment of their processes, a folder for logs."""

    name: str
    folder: Path
    environment: dict[str, str]

    @property
    def bridge(self) -> str:
        """Its interface."""
        return f"{self.name}br"

    @property
    def subnet(self) -> str:
        """The first three numbers of its addresses."""
        return f"10.78.{self.name.removeprefix('pix')}"

    @property
    def gcs(self) -> str:
        """Where the head listens."""
        return f"{self.subnet}.1:{GCS_PORT}"


class Host:
    """One network namespace: `eth0` with an address on the bridge, and at most one Ray node."""

    def __init__(self, network: Network, number: int) -> None:
        self.network, self.number = network, number
        self.namespace = f"{network.name}h{number}"
        self.address = f"{network.subnet}.{number + 1}"
        self.outer = f"{network.name}v{number}"
        self.node: subprocess.Popen[str] | None = None
        ip("netns", "add", self.namespace)
        ip("link", "add", self.outer, "type", "veth", "peer", "name", INTERFACE, "netns", self.namespace)
        ip("link", "set", self.outer, "master", network.bridge, "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", INTERFACE)
        ip("-n", self.namespace, "link", "set", INTERFACE, "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")

    def start(self, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start a process on this host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *map(str, words)], cwd=ROOT, text=True, start_new_session=True,
            env=self.network.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def job(self, *words: str, **environment: str) -> Job:
        """Start `python -m WORDS` on this host as a driver."""
        address = {"RAY_ADDRESS": self.network.gcs}
        return Job(self.start(sys.executable, "-u", "-m", *words, **(address | environment)))

    def start_node(self, cpus: int = 1) -> None:
        """Start this host's Ray node; the first host's is the head."""
        role = ["--address", self.network.gcs]
        if self.number == 0:
            role = ["--head", "--port", str(GCS_PORT), "--dashboard-host", self.address]
            role += ["--dashboard-port", str(DASHBOARD_PORT)]
        log = self.network.folder / f"node-{self.number}.log"
        command = [
            BIN / "ray", "start", *role, "--block", "--node-ip-address", self.address, "--num-cpus", str(cpus),
            "--object-store-memory", "100000000", "--temp-dir", f"/tmp/{self.namespace}", "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("w") as output:
            self.node = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *map(str, command)], cwd=ROOT, text=True,
                start_new_session=True, env=self.network.environment, stdout=output, stderr=output,
            )  # fmt: skip

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Processes of this host whose command line begins with or names a program."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        return processes_named(name, map(int, listed.stdout.split()))

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
            with contextlib.suppress(psutil.NoSuchProcess):  # those just killed may be gone at any moment
                words = process.cmdline()
                if "ray" in " ".join(words[:4]).lower() and "jobs." not in " ".join(words):
                    process.kill()

    def drain(self, seconds: int) -> float:
        """Say, as `ray drain-node` does, that this host goes in so many seconds; gives when it was said."""
        drained = self.start(sys.executable, "-c", DRAIN, self.network.gcs, self.node_id(), str(seconds))
        told, _ = drained.communicate(timeout=60)
        match = re.search(r"^drained ([\d.]+)$", told, re.MULTILINE)
        assert match, told
        return float(match.group(1))

    def cut(self) -> None:
        """Take its link down."""
        ip("link", "set", self.outer, "down")

    def mend(self) -> None:
        """Bring its link up."""
        ip("link", "set", self.outer, "up")

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
