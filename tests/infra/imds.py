"""Stands in for EC2's metadata service on 169.254.169.254: IMDSv2 alone, a role's credentials, tags, a spot notice."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "metadata-token"
CREDENTIALS = {
    "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "key", "SecretAccessKey": "secret", "Token": "session",
    "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
}  # fmt: skip


def main() -> None:
    """Serve an instance's id, address and node type, given as arguments; the last one is its spot notice's file."""
    instance, address, kind, notice = sys.argv[1:]
    texts = {
        "instance-id": instance,
        "local-ipv4": address,
        "tags/instance/ray-user-node-type": kind,
        "iam/security-credentials/": "role",
        "iam/security-credentials/role": json.dumps(CREDENTIALS),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, TOKEN)

        def do_GET(self) -> None:
            path = self.path.removeprefix("/latest/meta-data/")
            if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                self._answer(401, "")
            elif path == "spot/instance-action" and Path(notice).exists():
                self._answer(200, Path(notice).read_text())
            elif path in texts:
                self._answer(200, texts[path])
            else:
                self._answer(404, "")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "300")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    ThreadingHTTPServer(("169.254.169.254", 80), Handler).serve_forever()


main()
