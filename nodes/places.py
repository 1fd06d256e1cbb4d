"""Where things lie on a node."""

from pathlib import Path

ENVIRONMENT = Path("/opt/pixelcnn/env")
SOFTWARE = Path("/opt/pixelcnn/software")
CONFIGURATION = Path("/etc/pixelcnn")
BOARDS = CONFIGURATION / "boards"
"""Grafana's dashboards that aren't Ray's own."""
HOME = Path("/var/lib/pixelcnn")
"""Home of the user that Ray, jobs and MLflow run as."""
SECRETS = Path("/run/pixelcnn")
"""In memory, for that user and root alone."""
RAY_TOKEN = SECRETS / "ray-token"
RAY_FILES = HOME / "ray"
AUTOSCALER = HOME / "autoscaler.yaml"
SHARD_CACHE = Path("/mnt/shards")
UNITS = Path("/etc/systemd/system")
USER = "pixelcnn"

RAY_PORT = 6379
DASHBOARD = "http://127.0.0.1:8265"
METRICS_PORT = 9901
"""Outside the range 10002-19999 from which Ray's workers take theirs."""
