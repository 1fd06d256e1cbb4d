"""Stands in for systemd in a test's namespace: runs a unit's commands in its environment, again where it says so.

User= is left out: everything runs as root here, as this machine's Python may be readable to root alone.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")


class Unit:
    """A unit file, whose keys may stand several times."""

    def __init__(self, path: Path) -> None:
        self.lines = [line for line in path.read_text().splitlines() if "=" in line]

    def all(self, key: str) -> list[str]:
        return [line.partition("=")[2] for line in self.lines if line.partition("=")[0] == key]

    def one(self, key: str, default: str = "") -> str:
        return (self.all(key) or [default])[-1]


def environment(unit: Unit) -> dict[str, str]:
    found = {}
    for line in unit.all("Environment"):
        found |= dict(word.split("=", 1) for word in shlex.split(line))
    for path in unit.all("EnvironmentFile"):
        found |= dict(line.split("=", 1) for line in Path(path).read_text().splitlines() if line)
    return found


def run(command: str, unit: Unit, log: Path) -> int:
    with log.open("a") as output:
        return subprocess.run(
            shlex.split(command.lstrip("+")), env=environment(unit), cwd=unit.one("WorkingDirectory", "/"),
            stdout=output, stderr=output, check=False,
        ).returncode  # fmt: skip


def serve(name: str) -> None:
    unit, log = Unit(UNITS / name), Path("/var/log") / f"{name}.log"
    if folder := unit.one("RuntimeDirectory"):
        Path("/run", folder).mkdir(mode=int(unit.one("RuntimeDirectoryMode"), 8), exist_ok=True)
    while True:
        status = next((status for command in unit.all("ExecStartPre") if (status := run(command, unit, log))), 0)
        status = status or run(unit.one("ExecStart"), unit, log)
        for command in unit.all("ExecStopPost"):
            run(command, unit, log)
        again = unit.one("Restart")
        if again == "no" or (again == "on-failure" and status == 0):
            return
        time.sleep(float(unit.one("RestartSec", "1")))


def main() -> None:
    match sys.argv[1:]:
        case ["daemon-reload"]:
            return
        case ["enable", "--now", name]:
            subprocess.Popen(
                [sys.executable, __file__, "serve", name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        case ["serve", name]:
            serve(name)
        case words:
            sys.exit(f"systemctl {' '.join(words)}: not known here")


main()
