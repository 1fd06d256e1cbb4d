"""Hosts on one machine: namespaces of network, processes, mounts and name, their own file system over ours."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import wait_until

HERE = Path(__file__).parent
BRIDGE = "pixelcnn-test"

# The host's own layer over ours, so that user data may write where it does on EC2; what would end this machine is
# replaced before anything is run.
SET_UP = """
set -eu
mount --make-rprivate /
layer() { mkdir -p "$LAYERS/$1/upper" "$LAYERS/$1/work"; mount -t overlay overlay \
  -o "lowerdir=$2,upperdir=$LAYERS/$1/upper,workdir=$LAYERS/$1/work" "$2"; }
layer etc /etc; layer opt /opt; layer usr /usr; layer var /var; layer env "$ENVIRONMENT"
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /mnt
hostname "$NAME"; echo "127.0.0.1 localhost" > /etc/hosts; echo "$ADDRESS $NAME" >> /etc/hosts
mkdir -p /etc/systemd/system /opt/pixelcnn; ln -sfn "$ENVIRONMENT" /opt/pixelcnn/env
ip link set lo up; ip address add 169.254.169.254/32 dev lo
touch "$LAYERS/ready"
while :; do sleep 1 & wait; done
"""


def require_namespaces() -> None:
    """Skip where this machine can't make hosts."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("hosts on one machine need root, ip and unshare")
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"this machine makes no namespaces: {tried.stderr.decode().strip()}")


@dataclass
class Host:
    """One machine of the cluster."""

    name: str
    address: str
    instance: str
    kind: str
    folder: Path
    _processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self) -> None:
        """Make it, plug it into the bridge, give it its metadata."""
        layers = self.folder / self.name
        (layers / "usr/upper/bin").mkdir(parents=True)
        (layers / "usr/upper/sbin").mkdir()
        for path, text in {
            "bin/systemctl": f'#!/bin/sh\nexec {sys.executable} {HERE}/systemctl.py "$@"\n',
            "sbin/shutdown": "#!/bin/sh\ndate +%s >> /var/log/shutdown\n",
        }.items():
            (layers / "usr/upper" / path).write_text(text)
            (layers / "usr/upper" / path).chmod(0o755)
        environment = {
            "PATH": os.environ["PATH"], "LAYERS": str(layers), "ENVIRONMENT": sys.prefix, "NAME": self.name,
            "ADDRESS": self.address,
        }  # fmt: skip
        command = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "bash", "-c", SET_UP]
        with (self.folder / f"{self.name}.log").open("w") as log:
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        wait_until((layers / "ready").exists, 30, f"host {self.name}")
        wire, pid = f"{self.name[:8]}-out", str(self._inside())
        ip("link", "add", wire, "type", "veth", "peer", "name", "ens5", "netns", pid)
        ip("link", "set", wire, "master", BRIDGE, "up")
        self.run("ip", "address", "add", f"{self.address}/16", "dev", "ens5")
        self.run("ip", "link", "set", "ens5", "up")
        metadata = [
            sys.executable,
            str(HERE / "imds.py"),
            self.instance,
            self.address,
            self.kind,
            "/var/log/spot-notice",
        ]
        self._processes.append(subprocess.Popen(self._enter(*metadata)))

    def _inside(self) -> int:
        """The first process within, as this machine numbers it."""
        unshared = self._processes[0].pid
        return int(Path(f"/proc/{unshared}/task/{unshared}/children").read_text().split()[0])

    def _enter(self, *words: str) -> list[str]:
        return [
            "nsenter", "--target", str(self._inside()), "--net", "--mount", "--pid", "--uts", "env", "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/var", *words,
        ]  # fmt: skip

    def run(self, *words: str, seconds: float = 60) -> str:
        """What a command on the host prints; a failure fails the test."""
        done = subprocess.run(self._enter(*words), capture_output=True, text=True, timeout=seconds, check=False)
        assert done.returncode == 0, f"{self.name}: {words[0]} ...:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def boot(self, user_data: str) -> None:
        """Run the user data as cloud-init would."""
        self.write("/var/log/user-data.sh", user_data)
        self.run("bash", "/var/log/user-data.sh", seconds=240)

    def write(self, path: str, text: str) -> None:
        """Put a file on the host, from within: its file system may not notice what is changed beneath it."""
        self.run("sh", "-c", f"cat > {path} <<'TEXT'\n{text}\nTEXT")

    def file(self, path: str) -> Path:
        """Where this machine sees a file that the host wrote below /etc, /opt, /usr or /var."""
        top, _, rest = path.lstrip("/").partition("/")
        return self.folder / self.name / top / "upper" / rest

    def stop(self) -> None:
        """Pull the plug: everything on the host ends at once."""
        if self._processes:
            with contextlib.suppress(IndexError, ProcessLookupError, FileNotFoundError):
                os.kill(self._inside(), signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()


def ip(*words: str) -> None:
    """The ip command on this machine."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
