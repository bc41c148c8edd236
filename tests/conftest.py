"""Which version of containerd the tests run on: `CONTAINERD=1.6|1.7|2.1` (see `tests.lab.versions`).

Tests on a version that cannot be had are skipped with the reason. They fail instead if the version is the default one,
or with `STRICT=1` in the environment.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.versions import DEFAULT, VersionUnavailableError, choose, containerd_version

ON_CONTAINERD = frozenset({"cluster", "lab", "parts", "e2e", "image", "integration", "machine"})
"""The folders whose tests start a containerd."""

settings.register_profile("nodediag", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nodediag")
"""No example fails because it took long: beside another load it may."""


def pytest_configure() -> None:
    """Choose the version before anything is collected, so that processes of xdist inherit it."""
    _unavailable()


def pytest_report_header() -> str:
    """Print the version at the head of a run."""
    return _unavailable() or str(choose())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail what needs the chosen version, if that cannot be had."""
    reason = _unavailable()
    if not reason or not _needs_containerd(item.path):
        return
    if os.environ.get("STRICT") == "1" or containerd_version() == DEFAULT:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _unavailable() -> str:
    """Return why the chosen version cannot be had; an empty string if it can."""
    try:
        choose()
    except VersionUnavailableError as error:
        return str(error)
    return ""


def _needs_containerd(path: Path) -> bool:
    return path.relative_to(Path(__file__).parent).parts[0] in ON_CONTAINERD
