"""The last step of a node's first boot: its user, its folders and its services."""

import importlib.resources
import os
import shutil
import subprocess
import tarfile

from nodes.instance_store import mount_shard_cache
from nodes.observers import write_observers_configuration
from nodes.places import HOME, SOFTWARE, UNITS, USER

SERVICES = {
    "head": ["ray-head", "autoscaler-config", "metrics"],
    "worker": ["ray-worker", "spot", "metrics"],
    "mlflow": ["mlflow", "metrics"],
}


def services(role: str) -> list[str]:
    """The services of a role, with those that its configuration and software call for."""
    wanted = list(SERVICES[role])
    if role == "head" and float(os.environ["PIXELCNN_IDLE_GUARD_HOURS"]) > 0:
        wanted.append("idle-guard")
    if role == "head":
        wanted += [name for name in ("prometheus", "grafana") if (SOFTWARE / f"{name}.tar.gz").exists()]
    return wanted


def unpack(name: str) -> None:
    """A program that came as a tar: its single top folder becomes /opt/pixelcnn/NAME."""
    target = SOFTWARE.parent / name
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(SOFTWARE / f"{name}.tar.gz") as archive:
        archive.extractall(part, filter="data")
    (top,) = part.iterdir()
    shutil.rmtree(target, ignore_errors=True)
    top.rename(target)
    part.rmdir()


def add_user() -> None:
    """The user that everything but set-up runs as."""
    if subprocess.run(["id", USER], capture_output=True, check=False).returncode:
        subprocess.run(
            ["useradd", "--system", "--home-dir", str(HOME), "--shell", "/usr/sbin/nologin", USER], check=True
        )
    HOME.mkdir(parents=True, exist_ok=True)
    subprocess.run(["chown", f"{USER}:{USER}", str(HOME)], check=True)


def main() -> None:
    """Set this node up and start its services."""
    role = os.environ["PIXELCNN_ROLE"]
    add_user()
    if role == "worker" and os.environ["PIXELCNN_SHARD_CACHE"] == "nvme":
        mount_shard_cache()
    wanted = services(role)
    for name in {"prometheus", "grafana"} & set(wanted):
        unpack(name)
    if role == "head":
        write_observers_configuration()
    units = importlib.resources.files("nodes") / "units"
    names = [f"pixelcnn-{name}.service" for name in wanted]
    for name in names:
        (UNITS / name).write_text((units / name).read_text())
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    for name in names:
        subprocess.run(["systemctl", "enable", "--now", name], check=True)


if __name__ == "__main__":
    main()
