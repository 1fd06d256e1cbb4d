"""A proxy in front of a real server that spoils or delays what passes, as networks and object stores do."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["503", "reset", "stall", "truncate", "flip"]


class FaultyProxy(ThreadingHTTPServer):
    """Passes everything on; GETs of objects take the next of `faults` first, None for none."""

    daemon_threads = True

    def __init__(self, upstream: str, port: int, stall_seconds: float) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream, self.stall_seconds = upstream.removeprefix("http://"), stall_seconds
        self.delay_seconds = 0.0
        """Before every request is passed on."""
        self.faults: list[Fault | None] = []
        self.met: list[Fault] = []
        self.sent = 0
        """Bytes of objects, counted before they leave: whoever holds the last one finds it counted."""
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> Fault | None:
        with self._lock:
            fault = self.faults.pop(0) if self.faults else None
            if fault:
                self.met.append(fault)
            return fault

    def count_sent(self, size: int) -> None:
        with self._lock:
            self.sent += size


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _pass_on(self) -> None:
        time.sleep(self.server.delay_seconds)
        length = int(self.headers.get("Content-Length", 0))
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        upstream.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        is_object = self.command == "GET" and "?" not in self.path
        fault = self.server.next_fault() if is_object and answer.status < 300 else None
        if fault == "503":
            answer.status, content = 503, b"<Error><Code>SlowDown</Code></Error>"
        if fault == "flip":
            content = content[:-600] + bytes([content[-600] ^ 1]) + content[-599:]
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = int(answer.getheader("Content-Length", 0)) if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault in ("reset", "stall", "truncate"):
            content = content[: len(content) // 2]
        if self.command != "HEAD":
            self.server.count_sent(len(content) if is_object else 0)
            self.wfile.write(content)
        if fault == "stall":
            self.wfile.flush()
            time.sleep(self.server.stall_seconds)
        if fault == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault in ("reset", "stall", "truncate"):
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_PATCH = _pass_on

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def faulty_proxy(upstream: str, port: int = 0, stall_seconds: float = 3.0) -> Iterator[FaultyProxy]:
    """The proxy, running; on a free port unless told which."""
    proxy = FaultyProxy(upstream, port, stall_seconds)
    thread = threading.Thread(target=proxy.serve_forever, name="faulty-proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
