"""Writes single settings as the file has them."""

import sys
from typing import Any

import yaml


def inline(value: Any) -> str:  # noqa: ANN401 - any setting
    """Return a value as YAML on one line, in ASCII."""
    plain = list(value) if isinstance(value, tuple) else value
    inside_a_list = yaml.safe_dump([plain], default_flow_style=True, width=sys.maxsize)
    return inside_a_list.strip()[1:-1]
