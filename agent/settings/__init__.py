"""The settings: one YAML file, every key optional, all mistakes told at once.

A typo must never switch a safety off, so unknown and repeated keys, wrong types, values out of
bounds and values that contradict each other are refused before anything starts.

`tree` says what there is, `sanity` what does not go together, `loading` reads the file and
`writing` writes it. How a single setting is declared stands in agent.schema, and what a value
may be in agent.values.
"""

from agent.settings.loading import Loaded, SettingsError, load
from agent.settings.tree import DetectorsSettings, GrpcSettings, Settings, describe, node_name
from agent.settings.writing import inline

__all__ = [
    "DetectorsSettings",
    "GrpcSettings",
    "Loaded",
    "Settings",
    "SettingsError",
    "describe",
    "inline",
    "load",
    "node_name",
]
