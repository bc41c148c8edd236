"""The settings file: what it may say, and how every mistake in it is told."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from agent.model import Action
from agent.schema import rule_of
from agent.settings import Loaded, Settings, SettingsError, describe, load, node_name
from agent.settings.tree import ActionsSettings

Load = Callable[[str], Loaded]
Refuse = Callable[[str | bytes], list[str]]

CONTRACT = """
node_name: ""                      # else $NODE_NAME, else the hostname
host: {proc: /proc, sys: /sys, dev_kmsg: /dev/kmsg, state_dir: /var/lib/nodediag}
http: {listen: "127.0.0.1:9797"}  # /metrics /livez /readyz and a status page at /
grpc:
  listen: "unix:/run/nodediag/nodediag.sock"
  tls: {cert_file: "", key_file: "", client_ca_file: ""}
  callers: []
containerd: {address: /run/containerd/containerd.sock, state_dir: /run/containerd, namespaces: [k8s.io]}
kubelet: {healthz_url: "http://127.0.0.1:10248/healthz", api_url: "", token_file: "", ca_file: "",
  insecure_skip_verify: false}
dns: {servers: [], name: "kubernetes.default.svc.cluster.local"}
detectors:
  containerd_shim: {enabled: true}
  defunct_processes: {max_total: 1000, max_per_parent: 30}
  conntrack_dns: {}
  kubelet_healthz: {slow_seconds: 3}
remediation: {enabled: false, dry_run: true, actions: {KillShim: {enabled: true, cooldown_seconds: 60,
  max_per_hour: 6}}}
"""

TEN_MISTAKES = """\
node_name: yes
http:
  listn: "127.0.0.1:9797"
dns: {servers: 10.0.0.1, name: [a]}
detectors:
  kubelet_healthz:
    period_seconds: .nan
    failure_threshold: 0
    enabled: 1
  containerd_shim: []
containerd:
  namespaces: []
  namespaces: [k8s.io]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nodediag.yaml"


@pytest.fixture
def loaded(file: Path) -> Load:
    def loaded(text: str) -> Loaded:
        file.write_text(text)
        return load(file)

    return loaded


@pytest.fixture
def refused(file: Path) -> Refuse:
    """The lines a file is refused with."""

    def refused(content: str | bytes) -> list[str]:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(SettingsError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}: ")
        assert all("\n" not in line for line in caught.value.problems)
        return caught.value.problems

    return refused


def value_at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


# What holds without a word


@pytest.mark.parametrize(
    ("path", "default"),
    [
        ("node_name", ""),
        ("host.proc", "/proc"),
        ("host.sys", "/sys"),
        ("host.dev_kmsg", "/dev/kmsg"),
        ("host.state_dir", "/var/lib/nodediag"),
        ("http.listen", "127.0.0.1:9797"),
        ("grpc.listen", "unix:/run/nodediag/nodediag.sock"),
        ("grpc.callers", ()),
        ("grpc.tls.cert_file", ""),
        ("containerd.address", "/run/containerd/containerd.sock"),
        ("containerd.state_dir", "/run/containerd"),
        ("containerd.namespaces", ("k8s.io",)),
        ("kubelet.healthz_url", "http://127.0.0.1:10248/healthz"),
        ("kubelet.api_url", ""),
        ("kubelet.insecure_skip_verify", False),
        ("kubelet.pod_labels", ()),
        ("dns.servers", ()),
        ("dns.name", "kubernetes.default.svc.cluster.local"),
        ("dns.resolv_conf", "/etc/resolv.conf"),
        ("detectors.kubelet_healthz.deadline_seconds", 10.0),
        ("remediation.enabled", False),
        ("remediation.dry_run", True),
        ("remediation.max_per_hour", 12),
        ("remediation.actions.KillShim.enabled", True),
        ("remediation.actions.KillShim.cooldown_seconds", 60.0),
        ("remediation.actions.KillShim.max_per_hour", 6),
        ("remediation.actions.RestartKubelet.cooldown_seconds", 60.0),
        ("remediation.actions.RestartContainerd.cooldown_seconds", 120.0),
    ],
)
def test_promised_defaults(path: str, default: object) -> None:
    assert value_at(Settings(), path) == default


@pytest.mark.parametrize("name", [item.name for item in fields(Settings().detectors)])
def test_every_detector_has_the_common_settings_and_is_on(name: str) -> None:
    settings = getattr(Settings().detectors, name)
    assert settings.enabled
    assert settings.failure_threshold == 2
    assert settings.success_threshold == 1
    assert settings.period_seconds < settings.timeout_seconds


def test_every_action_of_the_model_has_its_settings() -> None:
    assert {item.name for item in fields(ActionsSettings)} == set(Action) - {Action.NONE}


def test_without_a_file_every_default_holds_and_nothing_is_set() -> None:
    assert load(None) == Loaded(Settings(), frozenset())


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "host:\n", "host: {}\n", "\ufeff"])
def test_a_file_that_says_nothing_gives_the_defaults(loaded: Load, text: str) -> None:
    assert loaded(text) == Loaded(Settings(), frozenset())


def test_the_file_of_the_contract_loads_to_the_defaults(loaded: Load) -> None:
    assert loaded(CONTRACT).settings == Settings()


def test_every_setting_has_a_meaning_and_a_default_within_its_own_bounds() -> None:
    for path, value, rule in describe(Settings()):
        assert rule.meaning, path
        if is_dataclass(value):
            continue
        assert rule.minimum is None or value >= rule.minimum, path
        assert rule.maximum is None or value <= rule.maximum, path
        assert rule.check is None or rule.check(value) is None, path


def test_every_number_has_bounds() -> None:
    for path, value, rule in describe(Settings()):
        if type(value) in (int, float):
            assert rule.minimum is not None, path
            assert rule.maximum is not None, path


def test_describe_names_every_field() -> None:
    def count(table: Any) -> int:
        values = [getattr(table, item.name) for item in fields(table)]
        return len(values) + sum(count(value) for value in values if is_dataclass(value))

    paths = [path for path, _, _ in describe(Settings())]
    assert len(set(paths)) == len(paths) == count(Settings())
    assert "detectors.containerd_shim.period_seconds" in paths


# What is set


def test_what_is_set_is_taken_and_the_rest_keeps_its_default(loaded: Load) -> None:
    settings = loaded("detectors: {kubelet_healthz: {slow_seconds: 1}}\nhttp: {listen: '[::1]:80'}\n").settings
    default = Settings()
    kubelet = replace(default.detectors.kubelet_healthz, slow_seconds=1.0)
    assert settings.detectors == replace(default.detectors, kubelet_healthz=kubelet)
    assert settings.http.listen == "[::1]:80"


def test_one_action_can_be_changed_without_the_others(loaded: Load) -> None:
    actions = loaded("remediation: {actions: {RestartContainerd: {max_per_hour: 1}}}").settings.remediation.actions
    assert actions.RestartContainerd == replace(ActionsSettings().RestartContainerd, max_per_hour=1)
    assert actions.KillShim == ActionsSettings().KillShim


def test_only_what_the_file_sets_is_set_be_it_to_its_default(loaded: Load) -> None:
    file = loaded("kubelet: {healthz_url: 'http://127.0.0.1:10248/healthz'}\ndns: {servers: []}\nhost:\n")
    assert file.explicit == {"kubelet.healthz_url", "dns.servers"}
    assert file.is_set("kubelet.healthz_url")
    assert not file.is_set("containerd.address")


@pytest.mark.parametrize(
    ("written", "number"), [("5", 5.0), ("2.5", 2.5), ("1e1", 10.0), ("1.5e+1", 15.0), ("+7", 7.0), ("1_0", 10.0)]
)
def test_a_number_can_be_written_in_every_usual_way(loaded: Load, written: str, number: float) -> None:
    settings = loaded(f"detectors: {{containerd_shim: {{period_seconds: {written}}}}}").settings
    assert settings.detectors.containerd_shim.period_seconds == number


@pytest.mark.parametrize(("written", "switch"), [("true", True), ("yes", True), ("on", True), ("No", False)])
def test_a_switch_can_be_written_in_every_way_yaml_has(loaded: Load, written: str, switch: bool) -> None:
    settings = loaded(f"detectors: {{containerd_shim: {{enabled: {written}}}}}").settings
    assert settings.detectors.containerd_shim.enabled is switch


@pytest.mark.parametrize(
    ("setting", "environ", "name"),
    [
        ("worker-1", {"NODE_NAME": "worker-2"}, "worker-1"),
        ("", {"NODE_NAME": "worker-2"}, "worker-2"),
        ("", {"NODE_NAME": ""}, "the-host"),
        ("", {}, "the-host"),
    ],
)
def test_the_node_is_named_by_the_setting_or_the_environment_or_the_host(
    monkeypatch: pytest.MonkeyPatch, setting: str, environ: dict[str, str], name: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "the-host")
    assert node_name(Settings(node_name=setting), environ) == name


# Mistakes


def test_ten_mistakes_are_ten_lines_each_with_its_place_and_what_would_be_right(refused: Refuse) -> None:
    namespaces = "must be names of containerd namespaces, at least one, such as [k8s.io]"
    assert refused(TEN_MISTAKES) == [
        "line 1: node_name: must be text, and YAML reads yes as true or false: put it in quotes",
        "line 3: http.listn: unknown key; did you mean listen?",
        "line 4: dns.servers: must be a list, such as [one, two] or [], not 10.0.0.1",
        "line 4: dns.name: must be text, not a list",
        "line 7: detectors.kubelet_healthz.period_seconds: must be a number, such as 2.5, not .nan",
        "line 8: detectors.kubelet_healthz.failure_threshold: must be at least 1; it is 0",
        "line 9: detectors.kubelet_healthz.enabled: must be true or false, not 1",
        "line 10: detectors.containerd_shim: must be a table of settings (key: value), not a list",
        f"line 12: containerd.namespaces: {namespaces}",
        "line 13: containerd.namespaces: is set twice, first in line 12",
    ]


def test_the_error_as_a_whole_counts_the_mistakes(file: Path) -> None:
    file.write_text("a: 1\nb: 2\n")
    with pytest.raises(SettingsError, match=r"nodediag.yaml: 2 mistakes\n  line 1: a: .*\n  line 2: b: "):
        load(file)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("node_name: 5", "line 1: node_name: must be text, and YAML reads 5 as a number: put it in quotes"),
        ("node_name: 2026-01-02", "YAML reads 2026-01-02 as a date: put it in quotes"),
        ("node_name: on", "YAML reads on as true or false: put it in quotes"),
        ("node_name:", "line 1: node_name: has no value: leave the line out, and the default holds"),
        ("node_name: 'a b'", "node_name: must be a node's name"),
        ("http: 5", "line 1: http: must be a table of settings (key: value), not 5"),
        ("http: {listen: x}", "such as 127.0.0.1:9797 or [::1]:9797; it is x"),
        ("http: {listen: ':9797'}", "http.listen: must be host:port"),
        ("http: {listen: '::1:9797'}", "http.listen: must be host:port"),
        ("http: {listen: 'a:65536'}", "http.listen: must be host:port"),
        ("http: {listen: 'a:²'}", "http.listen: must be host:port"),
        ("host: {proc: proc}", "host.proc: must be an absolute path, such as /run/containerd; it is proc"),
        ('host: {proc: "/a\\0b"}', "host.proc: must be an absolute path"),
        (f"containerd: {{address: /{'x' * 107}}}", "containerd.address: must be at most 107 bytes"),
        ("containerd: {namespaces: [../..]}", "must be names of containerd namespaces"),
        ("containerd: {namespaces: [5]}", "containerd.namespaces: must be text, and YAML reads 5 as a number"),
        ("containerd: {namespaces: {k8s.io: }}", "containerd.namespaces: must be a list, such as"),
        ("kubelet: {healthz_url: 'https://x/'}", "kubelet.healthz_url: must be an http:// URL"),
        ("dns: {servers: [10.0.0.1, nonsense]}", "dns.servers: 'nonsense' is no server address such as 10.96.0.10"),
        ("dns: {name: a..b}", "dns.name: 'a..b' is no DNS name"),
        ("detectors: {containerd_shim: {period_seconds: .inf}}", "must be a number, such as 2.5, not .inf"),
        ("detectors: {containerd_shim: {period_seconds: 1e999}}", "must be a number, such as 2.5, not 1e999"),
        ("detectors: {containerd_shim: {period_seconds: '5'}}", 'must be a number, such as 2.5, not "5"'),
        ("detectors: {containerd_shim: {period_seconds: true}}", "must be a number, such as 2.5, not true"),
        ("detectors: {containerd_shim: {period_seconds: 0.5}}", "must be at least 1; it is 0.5"),
        ("detectors: {containerd_shim: {period_seconds: 3601}}", "must be at most 3600; it is 3601"),
        ("detectors: {containerd_shim: {failure_threshold: 1.5}}", "must be a whole number, such as 5, not 1.5"),
        ("detectors: {containerd_shim: {failure_threshold: 010}}", "must be a whole number, such as 5, not 010"),
        ("detectors: {containerd_shim: {failure_threshold: 1:30}}", "must be a whole number, such as 5, not 1:30"),
        ("detectors: {containerd_shim: {enabled: 'yes'}}", 'must be true or false, not "yes"'),
        ("detectors: {conntrack_dsn: {}}", "detectors.conntrack_dsn: unknown key; did you mean conntrack_dns?"),
        ("healthz_url: x", "line 1: healthz_url: unknown key here; did you mean kubelet.healthz_url?"),
        ("zzz: 1", "line 1: zzz: unknown key; known here: node_name, host, http, "),
        ("5: 1", "line 1: 5: unknown key; known here:"),
        ("on: 1", "line 1: on: unknown key; known here:"),
        ("? [a, b]\n: 1", "a list: unknown key; known here:"),
        ('"a\\x1b[31m": 1', "line 1: a\\x1b[31m: unknown key"),
        (f"{'k' * 999}: 1", f"line 1: {'k' * 37}...: unknown key"),
        ("<<: {node_name: x}", "line 1: <<: unknown key"),
        ("- a", "line 1: must be a table of settings (key: value), not a list"),
        ("just words", "line 1: must be a table of settings (key: value), not just words"),
        ("node_name: a\nnode_name: b", "line 2: node_name: is set twice, first in line 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_what_would_be_right(refused: Refuse, text: str, line: str) -> None:
    (told,) = refused(text)
    assert line in told


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a: [1", "line 1, column 6: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "found character '\\t' that cannot start any token"),
        ("---\na: 1\n---\nb: 2", "expected a single document in the stream, but found another document"),
        ("a: &x {}\nb: *x", "line 2, column 4: aliases (*name) are not used here"),
        ("a: !!python/object:os.system x", "line 1, column 4: tags (!name) are not used here"),
        ("a: !!int ''", "tags (!name) are not used here"),
        ("a: \x00", "is not YAML: unacceptable character #x0000"),
        ("[" * 5000, "line 1, column 17: nested deeper than any settings are"),
        (b"\xff\xfea\x00", "is not UTF-8 text (byte 0)"),
        (b"# " + b"x" * 2_097_152, "is larger than 1 MiB; that is not a settings file"),
    ],
    ids=["open list", "colons", "tab", "two", "alias", "object", "empty int", "nul", "deep", "binary", "large"],
)
def test_what_is_no_settings_file_is_refused_plainly(refused: Refuse, content: str | bytes, line: str) -> None:
    (told,) = refused(content)
    assert line in told


def test_a_file_that_cannot_be_read_is_refused_plainly(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(SettingsError, match=r"has no file named \*\.yaml; name a settings file, or a folder of them"):
        load(tmp_path)


KUBELET_API = "api_url: 'https://10.0.0.7:10250', token_file: /token"


@pytest.mark.parametrize(
    "text", [KUBELET_API, f"{KUBELET_API}, ca_file: /ca.crt, pod_labels: [team, app.kubernetes.io/name]"]
)
def test_the_kubelets_api_can_be_asked(loaded: Load, text: str) -> None:
    assert loaded(f"kubelet: {{{text}}}").settings.kubelet.api_url == "https://10.0.0.7:10250"


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("api_url: 'http://10.0.0.7:10250', token_file: /t", "api_url", "must be an https:// URL without credentials"),
        ("api_url: 'https://u:p@10.0.0.7', token_file: /t", "api_url", "must be an https:// URL without credentials"),
        ("api_url: 'https://10.0.0.7/pods', token_file: /t", "api_url", "must be without a path"),
        ("api_url: 'https://worker-3:10250', token_file: /t", "api_url", "no name is resolved"),
        ("api_url: 'https://10.0.0.7:1025000', token_file: /t", "api_url", "Port out of range"),
        ("api_url: 'https://10.0.0.7'", "token_file", "nobody is let in without"),
        ("token_file: /token", "token_file", "has no effect while kubelet.api_url is empty"),
        ("insecure_skip_verify: true", "insecure_skip_verify", "has no effect while kubelet.api_url is empty"),
        (f"{KUBELET_API}, insecure_skip_verify: true, ca_file: /ca", "ca_file", "leave one of them out"),
        (f"{KUBELET_API}, pod_labels: ['a b']", "pod_labels", "must be names of labels"),
        (f"{KUBELET_API}, pod_labels: [team, team]", "pod_labels", "each once"),
        (f"{KUBELET_API}, pod_labels: {[f'l{n}' for n in range(17)]}", "pod_labels", "must be at most 16 names"),
    ],
)
def test_what_would_ask_the_kubelets_api_in_vain_or_in_the_open_is_refused(
    refused: Refuse, text: str, path: str, what: str
) -> None:
    (told,) = refused(f"kubelet: {{{text}}}")
    assert f"kubelet.{path}: " in told
    assert what in told


UNIX_OR_TCP = "must be unix: and an absolute path, such as unix:/run/nodediag/nodediag.sock; or host:port, such as"


@pytest.mark.parametrize(
    ("listen", "what"),
    [
        ("/run/nodediag.sock", UNIX_OR_TCP),
        ("unix:", UNIX_OR_TCP),
        ("unix:nodediag.sock", UNIX_OR_TCP),
        ("unix:@nodediag", UNIX_OR_TCP),
        ("vsock:1:2", UNIX_OR_TCP),
        ("10.0.0.7", UNIX_OR_TCP),
        (":9798", UNIX_OR_TCP),
        ("10.0.0.7:65536", UNIX_OR_TCP),
        ("/x:9798", UNIX_OR_TCP),
        (f"unix:/{'x' * 107}", "must be at most 107 bytes"),
    ],
)
def test_the_api_is_served_on_a_unix_socket_an_address_or_not_at_all(refused: Refuse, listen: str, what: str) -> None:
    (told,) = refused(f"grpc: {{listen: '{listen}'}}")
    assert what in told


@pytest.mark.parametrize("listen", ["", "unix:/run/x.sock", "unix:///run/x.sock", f"unix:/{'x' * 106}"])
def test_where_the_api_may_be_served(loaded: Load, listen: str) -> None:
    assert loaded(f"grpc: {{listen: '{listen}'}}").settings.grpc.listen == listen


TLS = "tls: {cert_file: /c, key_file: /k, client_ca_file: /ca}"


@pytest.mark.parametrize("listen", ["0.0.0.0:9798", "[::1]:9798", "127.0.0.1:0", "node.example:9798"])
def test_over_tcp_with_certificates_and_callers(loaded: Load, listen: str) -> None:
    ids = ["spiffe://example.org/ns/ops/sa/controller", "spiffe://a.b/c-1_2.3", "reader", "Reader.ops.svc", "a_b.c-d"]
    callers = ", ".join(f"{{identity: '{each}', actions: [KillShim, ThawCgroup]}}" for each in ids[:-1])
    grpc = loaded(f"grpc: {{listen: '{listen}', {TLS}, callers: [{callers}, {{identity: {ids[-1]}}}]}}").settings.grpc
    assert [caller.identity for caller in grpc.callers] == ids
    assert [caller.actions for caller in grpc.callers] == [("KillShim", "ThawCgroup")] * 4 + [()]


def test_over_tcp_everything_that_is_missing_is_told_at_once(refused: Refuse) -> None:
    assert refused("grpc: {listen: '0.0.0.0:9798'}") == [
        "grpc.tls.cert_file: must be set to serve gRPC over TCP (grpc.listen is 0.0.0.0:9798)",
        "grpc.tls.key_file: must be set to serve gRPC over TCP (grpc.listen is 0.0.0.0:9798)",
        "grpc.tls.client_ca_file: must be set to serve gRPC over TCP (grpc.listen is 0.0.0.0:9798)",
        "grpc.callers: must name at least one caller to serve gRPC over TCP, or nobody could call",
    ]


@pytest.mark.parametrize(("listen", "where"), [("unix:/n.sock", "on a Unix socket"), ("", "where no API is served")])
def test_certificates_and_callers_that_would_count_for_nothing_are_refused(
    refused: Refuse, listen: str, where: str
) -> None:
    told = refused(f"grpc: {{listen: '{listen}', tls: {{key_file: /k}}, callers: [{{identity: reader}}]}}")
    assert [line.split(": ", 1)[1] for line in told] == [
        f"grpc.tls.key_file: has no effect {where} (grpc.listen): leave it out, or set grpc.listen to host:port",
        f"grpc.callers: has no effect {where} (grpc.listen): leave it out, or set grpc.listen to host:port",
    ]


NO_ID = "must be a SPIFFE ID, such as spiffe://example.org/ns/ops/sa/controller, or a DNS name, such as"


@pytest.mark.parametrize(
    ("caller", "path", "what"),
    [
        ("{actions: [KillShim]}", "identity", "must be set: a SPIFFE ID or DNS name"),
        ("{identity: ''}", "identity", NO_ID),
        ("{identity: '*.ops.svc'}", "identity", "must be one identity: wildcards are not matched"),
        ("{identity: 'spiffe://example.org/*'}", "identity", "must be one identity: wildcards are not matched"),
        ("{identity: 'spiffe://example.org'}", "identity", NO_ID),
        ("{identity: 'spiffe://example.org/'}", "identity", NO_ID),
        ("{identity: 'spiffe://example.org/a/../b'}", "identity", NO_ID),
        ("{identity: 'spiffe://Example.org/a'}", "identity", NO_ID),
        ("{identity: 'https://example.org/a'}", "identity", NO_ID),
        ("{identity: 'CN=controller'}", "identity", NO_ID),
        ("{identity: '10.0.0.1'}", "identity", NO_ID),
        ("{identity: 'reader '}", "identity", NO_ID),
        ('{identity: "reader\\0.example"}', "identity", NO_ID),
        ("{identity: 'réader'}", "identity", NO_ID),
        ("{identity: reader, actions: [KillShimm]}", "actions", "must be names of actions, each once; there are: Kill"),
        ("{identity: reader, actions: [None]}", "actions", "must be names of actions"),
        ("{identity: reader, actions: [KillShim, KillShim]}", "actions", "must be names of actions, each once"),
        ("{identity: known}", "identity", "is that of grpc.callers[0] too; name each caller once"),
    ],
)
def test_a_caller_that_could_not_be_told_from_others_is_refused(
    refused: Refuse, caller: str, path: str, what: str
) -> None:
    (told,) = refused(f"grpc: {{listen: '127.0.0.1:9798', {TLS}, callers: [{{identity: known}}, {caller}]}}")
    assert f"grpc.callers[1].{path}: {what}" in told


@pytest.mark.parametrize("path", ["tls.crt", "~/tls.crt"])
def test_a_certificate_is_named_by_its_whole_path(refused: Refuse, path: str) -> None:
    (told,) = refused(f"grpc: {{tls: {{cert_file: '{path}'}}}}")
    assert "grpc.tls.cert_file: must be the absolute path of a file" in told


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (
            "containerd_shim: {timeout_seconds: 1, ping_seconds: 1}",
            "timeout_seconds: must be more than ping_seconds (1)",
        ),
        ("conntrack_dns: {timeout_seconds: 5, attempt_seconds: 2}", "must be more than six times attempt_seconds (12)"),
        ("kubelet_healthz: {deadline_seconds: 60}", "timeout_seconds: must be more than deadline_seconds (60)"),
        ("container_runtime: {timeout_seconds: 1, deadline_seconds: 5}", "must be more than deadline_seconds (5)"),
        (
            "kubelet_healthz: {deadline_seconds: 2, slow_seconds: 2}",
            "slow_seconds: must be less than deadline_seconds (2)",
        ),
        ("conntrack_dns: {min_lost_pairs: 6, repeat_pairs: 4}", "min_lost_pairs: must be at most repeat_pairs + 1 (5)"),
    ],
)
def test_settings_that_would_blind_a_detector_are_refused(refused: Refuse, table: str, line: str) -> None:
    (told,) = refused(f"detectors: {{{table}}}")
    assert line in told


def test_a_contradiction_names_the_line_if_there_is_one(refused: Refuse) -> None:
    assert refused("\ndetectors: {containerd_shim: {timeout_seconds: 0.1}}")[0].startswith("line 2: detectors.")
    assert refused("detectors: {containerd_shim: {ping_seconds: 30}}")[0].startswith("detectors.containerd_shim.time")


# Whatever a file holds

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([path.split(".")[-1] for path, _, _ in describe(Settings())]), inner)
    ),
)


@examples(max_examples=50)
@given(TREES)
def test_no_tree_of_values_does_anything_but_load_or_be_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "tree.yaml"
    file.write_text(yaml.safe_dump(tree))
    with suppress(SettingsError):
        load(file)


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_but_load_or_be_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    with suppress(SettingsError):
        load(file)


def test_presence_is_marked_where_the_detectors_rely_on_it() -> None:
    marked = {path for path, _, rule in describe(Settings()) if rule.presence}
    assert marked == {"containerd.address", "containerd.state_dir", "grpc.listen", "kubelet.healthz_url"}
    assert rule_of(fields(Settings().kubelet)[0].metadata).presence
