"""Configuration of Prometheus and Grafana on the head; both listen to this machine alone."""

import importlib.resources

from nodes.places import BOARDS, CONFIGURATION, RAY_FILES, RAY_TOKEN

PROMETHEUS = f"""# Every node of Ray by the list that Ray keeps; with token auth its metrics want the token too.
global:
  scrape_interval: 15s
scrape_configs:
  - job_name: ray
    authorization:
      credentials_file: {RAY_TOKEN}
    file_sd_configs:
      - files: [{RAY_FILES}/prom_metrics_service_discovery.json]
        refresh_interval: 15s # Ray's list is a link, whose changes Prometheus isn't told of
"""

DATASOURCE = """apiVersion: 1
datasources:
  - name: Prometheus
    uid: prometheus
    type: prometheus
    url: http://127.0.0.1:9090
    isDefault: true
"""

DASHBOARDS = f"""apiVersion: 1
providers:
  - name: ray
    folder: Ray
    options:
      path: {RAY_FILES}/session_latest/metrics/grafana/dashboards
  - name: training
    folder: pixelcnn-ray
    options:
      path: {BOARDS}
"""

TRAINING = (importlib.resources.files("nodes") / "dashboards" / "training.json").read_text()
"""Training's metrics by run, beside what Ray measures of GPUs, processors and disks."""


def write_observers_configuration() -> None:
    """Prometheus's targets; Grafana's data source, Ray's own dashboards and training's."""
    files = {
        CONFIGURATION / "prometheus.yml": PROMETHEUS,
        CONFIGURATION / "grafana/datasources/prometheus.yaml": DATASOURCE,
        CONFIGURATION / "grafana/dashboards/dashboards.yaml": DASHBOARDS,
        BOARDS / "training.json": TRAINING,
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
