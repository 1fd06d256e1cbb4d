"""Grafana's password, into the file that Grafana reads it from."""

import os

from nodes.places import SECRETS
from nodes.secret import read_secret, write_secret


def main() -> None:
    """Write it before Grafana starts."""
    write_secret(SECRETS / "grafana-password", read_secret(os.environ["PIXELCNN_GRAFANA_SECRET"]))


if __name__ == "__main__":
    main()
