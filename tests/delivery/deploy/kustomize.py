"""Builds what is in deploy/ as `kubectl apply -k` would, and gives its objects."""

import os
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
OVERLAYS = tuple(sorted(folder.name for folder in (DEPLOY / "overlays").iterdir()))
COMPONENTS = tuple(sorted(folder.name for folder in (DEPLOY / "components").iterdir()))
GUARD = "own-node-only"
"""A component that adds nothing by itself: it bounds what another may write."""
_PARTS = [name for name in COMPONENTS if name != GUARD]
COMBINED = (
    *(names for count in range(2, len(_PARTS) + 1) for names in combinations(_PARTS, count)),
    ("node-conditions", GUARD),
    COMPONENTS,
)
"""Every set of several components, and those with the guard; one alone is what the overlay of its name is."""
KUBECTL = Path(sys.executable).parent / "kubectl"

Object: TypeAlias = dict[str, Any]


@cache
def overlay(name: str) -> tuple[Object, ...]:
    """Return the objects of an overlay."""
    return built(DEPLOY / "overlays" / name)


@cache
def combination(components: tuple[str, ...]) -> tuple[Object, ...]:
    """Return the objects of several components together, combined as deploy/README.md says."""
    with TemporaryDirectory() as folder:
        here = Path(os.path.relpath(DEPLOY, Path(folder).resolve()))
        text = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [str(here / "base")],
            "components": [str(here / "components" / name) for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(text))
        return built(Path(folder))


def built(folder: Path) -> tuple[Object, ...]:
    """Return the objects that a kustomization makes."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return objects(done.stdout)


def objects(text: str) -> tuple[Object, ...]:
    """Return the objects of a YAML stream."""
    return tuple(each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each)


def of_kind(every: tuple[Object, ...], kind: str) -> list[Object]:
    """Return the objects of one kind."""
    return [each for each in every if each["kind"] == kind]


def daemon_set(every: tuple[Object, ...]) -> Object:
    """Return the one DaemonSet."""
    (found,) = of_kind(every, "DaemonSet")
    return found


def pod(every: tuple[Object, ...]) -> Object:
    """Return the spec of the DaemonSet's pods."""
    spec: Object = daemon_set(every)["spec"]["template"]["spec"]
    return spec


def containers(spec: Object) -> list[Object]:
    """Return every container of a pod, those that run before it included."""
    return [*spec["containers"], *spec.get("initContainers", [])]


def settings_files(every: tuple[Object, ...]) -> dict[str, str]:
    """Return the settings files by name."""
    (found,) = of_kind(every, "ConfigMap")
    data: dict[str, str] = found["data"]
    return data
