"""Whatever the manifests give the agent, the security page says why, and what is lost without it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.delivery.deploy.test_own_node_only import changed_status, status
from tests.delivery.docs.markdown import ROOT, sections

TABLES = {
    section.title: section.body
    for section in sections((ROOT / "docs/security.md").read_text())
    if section.title in ("To watch", "To mend, in addition", "Tokens")
}
WATCHING, MENDING = TABLES["To watch"], TABLES["To mend, in addition"]


def documents(*paths: str) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from yaml.safe_load_all((ROOT / "deploy" / path).read_text())


def pod(path: str) -> dict[str, Any]:
    (found,) = (each for each in documents(path) if each["kind"] == "DaemonSet")
    return dict(found["spec"]["template"]["spec"])


def capabilities(spec: dict[str, Any]) -> list[str]:
    return [name for each in spec["containers"] for name in each["securityContext"]["capabilities"]["add"]]


def host_paths(spec: dict[str, Any]) -> list[str]:
    return [each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each]


def test_every_privilege_to_watch_has_its_reason() -> None:
    spec = pod("base/daemonset.yaml")
    given = [name for name in ("hostPID", "hostNetwork") if spec.get(name)]
    given += [f"CAP_{name}" for name in capabilities(spec)] + host_paths(spec)
    given += ["uid 0"] if spec["containers"][0]["securityContext"]["runAsUser"] == 0 else []
    assert len(given) >= 7
    assert [each for each in given if each not in WATCHING] == []


def test_every_privilege_to_mend_has_its_reason() -> None:
    spec = pod("components/remediation/daemonset.yaml")
    given = [f"CAP_{name}" for name in capabilities(spec)] + host_paths(spec)
    given += [each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each]
    assert len(given) >= 6
    assert [each for each in given if each not in MENDING and each not in WATCHING] == []
    assert "CAP_KILL" in MENDING


@pytest.mark.parametrize("component", ["kubelet-api", "node-conditions"])
def test_every_right_in_the_api_stands_beside_its_token(component: str) -> None:
    rules = [rule for each in documents(f"components/{component}/rbac.yaml") for rule in each.get("rules", ())]
    row = next(line for line in TABLES["Tokens"].splitlines() if line.startswith(f"| `{component}` |"))
    assert rules
    for rule in rules:
        for word in (*rule["resources"], *rule["verbs"]):
            assert word in row, f"{word} of {rule}"
    assert "list" not in {verb for rule in rules for verb in rule["verbs"]}


def test_without_a_component_there_is_no_token() -> None:
    assert pod("base/daemonset.yaml")["automountServiceAccountToken"] is False
    assert "`automountServiceAccountToken: false`" in TABLES["Tokens"]


def test_the_parts_of_a_nodes_status_that_the_policies_refuse_are_those_the_page_says() -> None:
    schemas = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    (latest,) = schemas.glob(f"v{kubernetes_validate.latest_version()}*-local/nodestatus-v1.json")
    parts = set(json.loads(latest.read_text())["properties"]) - {"conditions"}
    refused = {part for part in parts if changed_status(status(**{part: ["changed"]}))}
    (refusing,) = re.findall(r"of its status (.*?);", TABLES["Tokens"], re.DOTALL)
    (rest,) = re.findall(r"They do not refuse .*? of its status(.*?)\.", TABLES["Tokens"], re.DOTALL)
    assert set(re.findall(r"`(\w+)`", refusing)) == refused
    assert set(re.findall(r"`(\w+)`", rest)) == parts - refused
