"""`infra/connect` against the cluster in moto; stand-ins for the AWS CLI and its plugin note what they were to open."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until
from tests.infra.conftest import INFRA, Cluster

pytestmark = [pytest.mark.infra, pytest.mark.timeout(400)]

PROGRAM = """#!{python}
import json, os, signal, subprocess, sys, time
with open(os.environ["SESSIONS"], "a") as file:
    file.write(json.dumps([os.getpid(), *sys.argv]) + "\\n")
if sys.argv[0].endswith("aws"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(subprocess.call(["session-manager-plugin"]))
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    time.sleep(300)
except KeyboardInterrupt:
    pass
"""
"""As the AWS CLI does, which leaves Ctrl-C to its plugin."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A person's home, with the programs that Session Manager needs on PATH."""
    (tmp_path / "bin").mkdir()
    for name in ("aws", "session-manager-plugin"):
        (tmp_path / "bin" / name).write_text(PROGRAM.format(python=sys.executable))
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def connected(cluster: Cluster, home: Path) -> Iterator["subprocess.Popen[str]"]:
    """The script at work, the head having been stopped by the idle guard."""
    head = cluster.resources()["aws_instance.head"]["id"]
    cluster.moto.client("ec2").stop_instances(InstanceIds=[head])
    environment = cluster.environment | {
        "HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}", "SESSIONS": str(home / "sessions"),
    }  # fmt: skip
    command = [
        sys.executable,
        INFRA / "connect",
        "--chdir",
        cluster.folder,
        "--ray-port",
        "18265",
        "--grafana-port",
        "3000",
    ]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as script:
        yield script
        script.kill()


def sessions(home: Path, program: str) -> list[list[str]]:
    """Process and words of each time that a program has been started so far."""
    path = home / "sessions"
    noted = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [started for started in noted if Path(started[1]).name == program]


def alive(process: str) -> bool:
    """Whether it runs; one that has ended may still be listed where nobody asks after it."""
    try:
        return psutil.Process(int(process)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_starts_the_head_opens_the_ports_keeps_the_secrets_and_ends_all(
    connected: "subprocess.Popen[str]", cluster: Cluster, home: Path
) -> None:
    found = cluster.resources()
    head, mlflow = (found[f"aws_instance.{name}"]["id"] for name in ("head", "mlflow"))
    wait_until(lambda: len(sessions(home, "session-manager-plugin")) == 3, 120, "three sessions")
    opened = sorted((words[words.index("--target") + 1], words[-1]) for _, *words in sessions(home, "aws"))
    assert opened == sorted([
        (head, "portNumber=8265,localPortNumber=18265"),
        (mlflow, "portNumber=5000,localPortNumber=5000"),
        (head, "portNumber=3000,localPortNumber=3000"),
    ])  # fmt: skip
    assert all("AWS-StartPortForwardingSession" in words for words in sessions(home, "aws"))
    state = cluster.moto.client("ec2").describe_instances(InstanceIds=[head])["Reservations"][0]["Instances"][0][
        "State"
    ]
    assert state["Name"] == "running"

    connected.send_signal(signal.SIGINT)
    told, _ = connected.communicate(timeout=180)
    assert connected.returncode == 0, told
    assert f"the head {head} was stopped; starting it" in told
    assert "Ray     http://127.0.0.1:18265" in told
    assert "MLflow  http://127.0.0.1:5000" in told
    assert "ray job submit -- python -m jobs.train digits" in told
    started = sessions(home, "aws") + sessions(home, "session-manager-plugin")
    assert [process for process, *_ in started if alive(process)] == []

    folder = home / ".pixelcnn-ray" / "pixelcnn"
    secrets = cluster.moto.client("secretsmanager")
    for name, full in cluster.outputs()["secrets"].items():
        value = secrets.get_secret_value(SecretId=full)["SecretString"]
        assert (folder / name).read_text() == value
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert value not in told + json.dumps(started)


def test_it_says_which_program_lacks(cluster: Cluster, home: Path) -> None:
    (home / "bin" / "session-manager-plugin").unlink()
    environment = cluster.environment | {"PATH": f"{home}/bin:{os.environ['PATH']}"}
    told = subprocess.run(
        [sys.executable, INFRA / "connect"], env=environment, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr.split(";")[0]) == (1, "session-manager-plugin is not on PATH")
