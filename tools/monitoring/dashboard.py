"""The Grafana dashboard: what its panels have in common, and the choice of data source and node."""

import json
from collections.abc import Iterable

from agent.model import Detector, Meter
from tools.monitoring.fleet_panels import fleet_rows
from tools.monitoring.node_panels import node_rows
from tools.monitoring.panels import SOURCE, Json, layout, outside
from tools.monitoring.rule import DOCS

SCHEMA_VERSION = 39
NODES = "label_values(nodediag_build_info, node)"


def dashboard(detectors: Iterable[type[Detector]], meters: Iterable[type[Meter]]) -> str:
    """Return the dashboard as JSON; it can be imported by hand or provisioned, since it asks for its data source."""
    counted = [metric for meter in meters for metric in meter.metrics]
    whole: Json = {
        "id": None,
        "uid": "nodediag",
        "title": "nodediag",
        "description": "What is wrong on the nodes of a cluster, where, and whose it is. Made from the code.",
        "tags": ["kubernetes", "nodes", "nodediag"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "links": [outside("Runbooks", f"{DOCS}runbooks/README.md")],
        "templating": {"list": [_source(), _node()]},
        "annotations": {"list": [_alerts()]},
        "panels": [*layout((*fleet_rows(detectors), *node_rows(counted)))],
    }
    return json.dumps(whole, indent=2) + "\n"


def _source() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
    }


def _node() -> Json:
    return {
        "name": "node",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "definition": NODES,
        "query": {"query": NODES, "refId": "nodes", "qryType": 1},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
    }


def _alerts() -> Json:
    """Mark when an alert about the chosen node fired, in every graph."""
    return {
        "name": "Alerts of $node",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Nodediag.+",alertstate="firing",node="$node"}',
        "step": "60s",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{reason}}",
    }
