"""A link that is late and loses frames, as the kernel's netem makes it, by a process between a host and its bridge.

Not every kernel has netem. `python -m tests.slow_link HOST BRIDGE MILLISECONDS LOSS` forwards frames between two
interfaces until SIGTERM and then tells how many there were: those that come in on HOST are held for so long, and of
them the share LOSS is dropped; the other way they go at once.
"""

import contextlib
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

from tests.host import ROOT, Host, ip

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE = 263, 15, 23, 33
"""Of linux/if_packet.h and asm/socket.h; Python has no names for them."""
ETH_P_ALL = 3
MOST_BYTES = 10 + 18 + 65536
"""A virtio header, Ethernet's, and the largest packet that segmentation offload leaves whole."""
BUFFER_BYTES = 64_000_000


@contextlib.contextmanager
def slow_link(host: Host, milliseconds: int, loss: float) -> Iterator[list[str]]:
    """What a host sends comes so late, and a share of it never; at the end the list holds what was forwarded."""
    near, far = (f"{host.network.name}{end}{host.number}" for end in "st")
    ip("link", "add", near, "type", "veth", "peer", "name", far)
    for name in (host.outer, near):
        ip("link", "set", name, "arp", "off")  # else this machine answers there for the services' address
    for name in (near, far):
        ip("link", "set", name, "up")
    words = [sys.executable, "-m", "tests.slow_link", host.outer, near, str(milliseconds), str(loss)]
    told: list[str] = []
    relay = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        assert relay.stdout
        assert relay.stdout.readline() == "forwarding\n"
        ip("link", "set", far, "master", host.network.bridge)
        ip("link", "set", host.outer, "nomaster")
        yield told
    finally:
        relay.terminate()
        told += relay.communicate(timeout=60)[0].splitlines()
        ip("link", "set", host.outer, "arp", "on", "master", host.network.bridge)
        ip("link", "del", near)


def _socket(interface: str) -> socket.socket:
    """Every frame that comes in on an interface, with what the kernel has yet to do for it: checksum, segments."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    opened.bind((interface, ETH_P_ALL))
    opened.setblocking(False)
    return opened


def _forward(host: str, bridge: str, seconds: float, loss: float) -> None:
    near, far, rng = _socket(host), _socket(bridge), random.Random(0)
    held: deque[tuple[float, bytes]] = deque()
    forwarded = lost = back = 0
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.append(signum))
    print("forwarding", flush=True)
    while not stopped:
        due = held[0][0] - time.monotonic() if held else 1.0
        ready, _, _ = select.select([near, far], [], [], max(0.0, min(0.1, due)))
        if near in ready:
            frame = near.recv(MOST_BYTES)
            if rng.random() < loss:
                lost += 1
            else:
                held.append((time.monotonic() + seconds, frame))
        if far in ready:
            near.send(far.recv(MOST_BYTES))
            back += 1
        while held and held[0][0] <= time.monotonic():
            far.send(held.popleft()[1])
            forwarded += 1
    print(f"{forwarded} frames forwarded after {1000 * seconds:g} ms, {lost} lost, {back} let through the other way")


def counts_of(told: list[str]) -> tuple[int, int]:
    """Frames that a slow link forwarded late, and that it lost."""
    match = re.search(r"(\d+) frames forwarded after .* ms, (\d+) lost", "\n".join(told))
    assert match, told
    return int(match.group(1)), int(match.group(2))


if __name__ == "__main__":
    _forward(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000, float(sys.argv[4]))
