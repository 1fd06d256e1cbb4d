"""A link that is late and loses frames: two hosts on a bridge, datagrams from one to the other, no Ray."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Host, Network, ip
from tests.hosts import free_number, why_not
from tests.slow_link import counts_of, slow_link

DATAGRAMS, PORT, MILLISECONDS = 400, 7000, 200

RECEIVE = """
import socket, sys, time
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
receiver.settimeout(60)
while True:
    sent = receiver.recv(2000).split(b" ")[0].decode()
    if sent == "end":
        break
    print(f"{1000 * (time.monotonic() - float(sent)):.1f}")
"""
SEND = """
import socket, sys, time
sender, there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), (sys.argv[1], int(sys.argv[2]))
for number in range(int(sys.argv[3])):
    sender.sendto(f"{time.monotonic()} {'x' * 1000}".encode(), there)
    time.sleep(0.002)
for _ in range(100):
    sender.sendto(b"end", there)
"""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    network = Network(f"pix{free_number()}", tmp_path, dict(os.environ))
    ip("link", "add", network.bridge, "type", "bridge")
    ip("link", "set", network.bridge, "up")
    hosts = Host(network, 0), Host(network, 1)
    yield hosts
    for host in hosts:
        host.remove()
    ip("link", "del", network.bridge)


def milliseconds_of_each(sender: Host, receiver: Host) -> list[float]:
    """How long each datagram took that came."""
    receiving = receiver.start(sys.executable, "-c", RECEIVE, receiver.address, str(PORT))
    assert receiving.stdout
    assert receiving.stdout.readline() == "ready\n"
    sender.start(sys.executable, "-c", SEND, receiver.address, str(PORT), str(DATAGRAMS)).communicate(timeout=60)
    return [float(line) for line in receiving.communicate(timeout=60)[0].splitlines()]


def test_frames_come_late_and_some_never_until_the_link_is_as_before(two: tuple[Host, Host]) -> None:
    near, far = two
    with slow_link(near, MILLISECONDS, 0.05) as told:
        took = milliseconds_of_each(near, far)
    assert min(took) >= MILLISECONDS
    assert 0.85 * DATAGRAMS < len(took) < DATAGRAMS
    late, lost = counts_of(told)
    assert late + lost >= DATAGRAMS
    assert lost >= DATAGRAMS - len(took)
    assert len(milliseconds_of_each(near, far)) == DATAGRAMS
