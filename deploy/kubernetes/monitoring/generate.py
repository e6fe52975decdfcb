#!/usr/bin/env python3
"""Makes servicemonitor.yaml and rules.yaml from grafana/prometheus/. `--check` only says whether they are up to date."""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parents[2] / "grafana" / "prometheus"
HEADER = "# Made by generate.py from grafana/prometheus/{source}: change it there, then run this again.\n"


def service_monitor():
    text = (SOURCE / "prometheus.yml").read_text()
    interval = re.search(r"^  scrape_interval: (\S+)$", text, re.M).group(1)
    job = re.search(r"^  - job_name: (\S+)$", text, re.M).group(1)
    # The rules ask for the job by its name, which the operator takes from this label of the Service.
    return HEADER.format(source="prometheus.yml") + f"""\
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {job}
  labels: {{ app.kubernetes.io/name: {job} }}
spec:
  jobLabel: app.kubernetes.io/name
  selector:
    matchLabels:
      app.kubernetes.io/name: {job}
      app.kubernetes.io/component: ops
  endpoints:
    - port: ops
      path: /metrics
      interval: {interval}
      scrapeTimeout: {interval}
"""


def rules():
    groups = []
    for name in ("recording.yml", "alerts.yml"):
        _, found, text = (SOURCE / name).read_text().partition("\ngroups:\n")
        assert found, f"{name} has no groups"
        groups += ["  " + line if line.strip() else "" for line in text.rstrip("\n").split("\n")]
    return HEADER.format(source="recording.yml and alerts.yml") + """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rushgate
  labels: { app.kubernetes.io/name: rushgate }
spec:
  groups:
""" + "\n".join(groups) + "\n"


def main():
    made = {"servicemonitor.yaml": service_monitor(), "rules.yaml": rules()}
    if sys.argv[1:] == ["--check"]:
        old = [name for name, text in made.items()
               if not (HERE / name).exists() or (HERE / name).read_text() != text]
        if old:
            sys.exit(f"{', '.join(old)}: not what grafana/prometheus/ says; run {pathlib.Path(__file__).name}")
        return
    for name, text in made.items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
