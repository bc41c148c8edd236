"""The examples of deploy/README.md build, with this tree in place of the published one."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from agent import __version__
from agent.settings import load
from tests.delivery.deploy.kustomize import COMPONENTS, DEPLOY, OVERLAYS, Object, built, objects, pod, settings_files

README = (DEPLOY / "README.md").read_text()
PUBLISHED = "github.com/nodediag/nodediag/deploy"
RELEASE = f"?ref=v{__version__}"
EXAMPLES: list[dict[str, Any]] = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]


def build(folder: Path, example: dict[str, Any]) -> tuple[Object, ...]:
    text = yaml.safe_dump(example).replace(PUBLISHED, os.path.relpath(DEPLOY, folder)).replace(RELEASE, "")
    (folder / "kustomization.yaml").write_text(text)
    return built(folder)


def test_the_combination_is_built_with_one_s_own_image_and_settings(tmp_path: Path) -> None:
    every = build(tmp_path, EXAMPLES[0])

    assert pod(every)["containers"][0]["image"] == "registry.example.org/nodediag:0.1.0"
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name, text in settings_files(every).items():
        (mounted / name).write_text(text)
    settings = load(mounted, {"NODE_IP": "192.0.2.7"}).settings
    assert [caller.identity for caller in settings.grpc.callers] == ["spiffe://example.org/ns/ops/sa/mender"]
    assert (settings.remediation.dry_run, settings.node_conditions.enabled) == (False, True)


def test_what_is_taken_from_afar_is_of_the_release_whose_image_is_named() -> None:
    """Manifests of a later day may need what an agent of that image does not know."""
    taken = re.findall(rf"{PUBLISHED}/\S+", README)
    assert taken
    assert all(each.endswith(RELEASE) for each in taken)


def test_a_signed_kubelet_is_checked_against_the_authority_that_is_mounted(tmp_path: Path) -> None:
    base = {"resources": [f"{PUBLISHED}/base"], "components": [f"{PUBLISHED}/components/kubelet-api"]}

    spec = pod(build(tmp_path, {**base, **EXAMPLES[1]}))

    volumes = {each["name"]: each for each in spec["volumes"]}
    assert "kubelet-certificate" not in volumes
    assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)
    token, authority = volumes["kubelet-token"]["projected"]["sources"]
    assert token["serviceAccountToken"]["path"] == "token"
    assert authority["configMap"]["name"] == "kube-root-ca.crt"


def test_every_overlay_and_component_is_told_of() -> None:
    for name in {*OVERLAYS, *COMPONENTS}:
        assert f"`{name}`" in README


def test_the_address_in_the_example_of_a_check_is_enough_for_the_base(tmp_path: Path) -> None:
    (address,) = re.findall(r"NODE_IP=(\S+) nodediag config --check", README)
    (tmp_path / "nodediag.yaml").write_text(
        settings_files(objects((DEPLOY / "daemonset.yaml").read_text()))["nodediag.yaml"]
    )

    assert load(tmp_path, {"NODE_IP": address}).settings.http.listen == f"{address}:9797"
