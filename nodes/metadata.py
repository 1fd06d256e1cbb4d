"""What an EC2 instance knows of itself: its metadata service, by IMDSv2 alone."""

import urllib.error
import urllib.request

ADDRESS = "http://169.254.169.254/latest"
TIMEOUT_SECONDS = 5


def metadata(path: str) -> str | None:
    """The text at a path below meta-data/, or None where there is none (as before a spot notice)."""
    ask = urllib.request.Request(
        f"{ADDRESS}/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with urllib.request.urlopen(ask, timeout=TIMEOUT_SECONDS) as answer:
        token = answer.read().decode()
    ask = urllib.request.Request(f"{ADDRESS}/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})
    try:
        with urllib.request.urlopen(ask, timeout=TIMEOUT_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
