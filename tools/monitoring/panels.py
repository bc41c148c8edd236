"""What a Grafana dashboard is made of: panels in rows, laid out from left to right, as its JSON wants them.

Only what differs from Grafana's own defaults is written. The form is the classic one (schemaVersion 39, Grafana 10.4
and 11), which every later version reads.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from string import ascii_uppercase
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NODE_LINK = {"title": "This node", "url": "/d/nodediag?var-node=${__field.labels.node}&${datasource:queryparam}"}
ROW_LINK = {"title": "This node", "url": "/d/nodediag?var-node=${__data.fields.node}&${datasource:queryparam}"}


class Kind(StrEnum):
    """Grafana's names of the panels in use."""

    STAT = "stat"
    GRAPH = "timeseries"
    STATES = "state-timeline"
    BARS = "bargauge"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Query:
    """A question to Prometheus and what its series are called; `{{label}}` is replaced by the label's value."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `width` of 24 columns, `height` in units of 30 pixels.

    `states` maps a value to its text and colour, `bad` is from where a value turns orange, `links` are title and URL.
    `columns` are the labels a table shows, each under a heading, the value being `Value`.
    """

    title: str
    kind: Kind
    queries: tuple[Query, ...]
    width: int
    height: int = 8
    unit: str = "short"
    description: str = ""
    stacked: bool = False
    bad: float | None = None
    top: float | None = None
    states: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a heading."""

    title: str
    panels: tuple[Panel, ...]


def layout(rows: Iterable[Row]) -> Iterator[Json]:
    """Yield the rows and panels with their places; ids count from 1 in reading order."""
    number, top = 0, 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        left, tallest = 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            number += 1
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def outside(title: str, url: str) -> Json:
    """Return a link out of Grafana, which opens beside it."""
    return {
        "title": title,
        "url": url,
        "type": "link",
        "icon": "doc",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "targetBlank": True,
    }


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "links": [outside(title, url) for title, url in panel.links],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(panel, *pair) for pair in zip(ascii_uppercase, panel.queries, strict=False)],
        **({"transformations": [_organised(panel.columns)]} if panel.kind is Kind.TABLE else {}),
    }


def _target(panel: Panel, ref: str, query: Query) -> Json:
    now = panel.kind in {Kind.BARS, Kind.TABLE}
    return {
        "refId": ref,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "table" if panel.kind is Kind.TABLE else "time_series",
        "instant": now,
        "range": not now,
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.bad is not None:
        steps.append({"color": "orange", "value": panel.bad})
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind is Kind.GRAPH else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": _custom(panel),
        "mappings": [
            {"type": "value", "options": {str(value): {"text": text, "color": color, "index": value}}}
            for value, (text, color) in panel.states.items()
        ],
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.kind is not Kind.STATES:
        defaults["min"] = 0
    if panel.kind is Kind.BARS:
        defaults["links"] = [NODE_LINK]
    if panel.kind is Kind.TABLE and "node" in panel.columns:
        defaults["links"] = [ROW_LINK]
    return defaults


def _custom(panel: Panel) -> Json:
    if panel.kind is Kind.GRAPH:
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 10,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return {"fillOpacity": 80, "lineWidth": 0} if panel.kind is Kind.STATES else {}


def _organised(columns: Mapping[str, str]) -> Json:
    """Show these columns in this order and under these headings, and no other."""
    hidden = (
        "Time",
        "__name__",
        "instance",
        "job",
        "status",
        "type",
        "reason",
        "node",
        "detector",
        "container_id",
        "comm",
    )
    return {
        "id": "organize",
        "options": {
            "excludeByName": {name: True for name in hidden if name not in columns},
            "indexByName": {name: place for place, name in enumerate(columns)},
            "renameByName": dict(columns),
        },
    }


_LATEST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Mapping[Kind, Json] = {
    Kind.STAT: {
        "reduceOptions": _LATEST,
        "orientation": "auto",
        "justifyMode": "auto",
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "value_and_name",
        "wideLayout": True,
    },
    Kind.GRAPH: {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    Kind.STATES: {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single", "sort": "none"},
    },
    Kind.BARS: {
        "reduceOptions": _LATEST,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "sizing": "auto",
        "namePlacement": "auto",
        "valueMode": "color",
    },
    Kind.TABLE: {"frameIndex": 0, "showHeader": True, "cellHeight": "sm"},
}
