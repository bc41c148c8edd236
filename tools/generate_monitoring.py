"""Writes what Prometheus and Grafana are given, and the list of alerts: `python -m tools.generate_monitoring FOLDER`.

FOLDER gets deploy/prometheus, deploy/grafana and docs/alerts.md; `make lint` compares what is checked in.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from agent.app import DETECTOR_CLASSES, METER_CLASSES
from agent.exporters.node_conditions.exporter import NodeConditions
from agent.model import Detector, Meter
from tools.monitoring.agent_alerts import agent_group
from tools.monitoring.alert_table import alert_table
from tools.monitoring.condition_alerts import condition_group
from tools.monitoring.dashboard import dashboard
from tools.monitoring.fleet_records import fleet_group
from tools.monitoring.rule import NOTICE, Group, write
from tools.monitoring.scraping import PODMONITOR, SCRAPE_CONFIG

METERS: tuple[type[Meter], ...] = (*METER_CLASSES, NodeConditions)
"""The parts that count for themselves; each has panels of its own."""
PROMETHEUS_RULE = """\
# A Prometheus that selects its rules by label (kube-prometheus-stack: release: NAME) needs that label here as well.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nodediag
  namespace: nodediag
  labels:
    app.kubernetes.io/name: nodediag
spec:
"""


def main() -> None:
    """Write every file into the folder named on the command line."""
    folder = Path(sys.argv[1])
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files(detectors: Iterable[type[Detector]] = DETECTOR_CLASSES) -> dict[str, str]:
    """Return the text of every file by its path."""
    every = groups(detectors)
    lines = [*write(every)]
    rules = "\n".join([*lines, ""])
    indented = "\n".join([*(f"  {line}" for line in lines), ""])
    return {
        "deploy/prometheus/rules.yaml": f"{NOTICE}\n{rules}",
        "deploy/prometheus/prometheusrule.yaml": f"{NOTICE}\n{PROMETHEUS_RULE}{indented}",
        "deploy/prometheus/podmonitor.yaml": f"{NOTICE}\n{PODMONITOR}",
        "deploy/prometheus/scrape-config.yaml": f"{NOTICE}\n{SCRAPE_CONFIG}",
        "deploy/grafana/dashboard.json": dashboard(detectors, METERS),
        "docs/alerts.md": alert_table(every),
    }


def groups(detectors: Iterable[type[Detector]] = DETECTOR_CLASSES) -> tuple[Group, ...]:
    """Return all rules; the fleet's come before those that read them."""
    return (fleet_group(), condition_group(detectors), agent_group())


if __name__ == "__main__":
    main()
