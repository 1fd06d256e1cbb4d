"""Configuration of Prometheus and Grafana on the head; both listen to this machine alone."""

from nodes.places import CONFIGURATION, RAY_FILES, RAY_TOKEN

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
"""


def write_observers_configuration() -> None:
    """Prometheus's targets; Grafana's data source and Ray's own dashboards."""
    files = {
        "prometheus.yml": PROMETHEUS,
        "grafana/datasources/prometheus.yaml": DATASOURCE,
        "grafana/dashboards/ray.yaml": DASHBOARDS,
    }
    for name, text in files.items():
        path = CONFIGURATION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
