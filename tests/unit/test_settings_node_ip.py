"""`$NODE_IP` in a setting: what it becomes, and how it is refused when nobody says what it is."""

import socket
from pathlib import Path

import pytest

from agent.settings import SettingsError, load
from agent.settings.node_ip import expanded


def refused(tmp_path: Path, text: str, environ: dict[str, str]) -> list[str]:
    file = tmp_path / "nodediag.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, environ)
    return caught.value.problems


def test_node_ip_stands_for_the_address_in_the_environment_in_both_listeners(tmp_path: Path) -> None:
    file = tmp_path / "nodediag.yaml"
    file.write_text(
        'http: {listen: "$NODE_IP:9797"}\n'
        'grpc: {listen: "$NODE_IP:9798", tls: {cert_file: /a, key_file: /b, client_ca_file: /c},\n'
        "  callers: [{identity: a.svc}]}\n"
    )

    settings = load(file, {"NODE_IP": "10.0.0.7"}).settings

    assert (settings.http.listen, settings.grpc.listen) == ("10.0.0.7:9797", "10.0.0.7:9798")


@pytest.mark.parametrize(
    ("address", "listen"),
    [("fd00::7", "[fd00::7]:9797"), ("FD00:0:0::7", "[fd00::7]:9797"), ("::1", "[::1]:9797")],
)
def test_an_ipv6_address_is_put_in_brackets(address: str, listen: str) -> None:
    assert expanded("$NODE_IP:9797", {"NODE_IP": address}) == listen


def test_a_url_takes_it_too() -> None:
    assert expanded("https://$NODE_IP:10250", {"NODE_IP": "fd00::7"}) == "https://[fd00::7]:10250"
    assert expanded("https://$NODE_IP:10250", {"NODE_IP": "10.0.0.7"}) == "https://10.0.0.7:10250"


def test_a_setting_without_it_needs_no_such_variable() -> None:
    assert expanded("127.0.0.1:9797", {}) == "127.0.0.1:9797"


@pytest.mark.parametrize("environ", [{}, {"NODE_IP": ""}])
def test_a_missing_variable_is_told_with_the_remedy(tmp_path: Path, environ: dict[str, str]) -> None:
    (problem,) = refused(tmp_path, 'http:\n  listen: "$NODE_IP:9797"\n', environ)

    assert problem == (
        "line 2: http.listen: has $NODE_IP, and the environment has no NODE_IP: set it (in a pod's spec from the field "
        "status.hostIP), or write the address itself"
    )


@pytest.mark.parametrize(
    "value",
    ["worker-3", "10.0.0.7:80", "10.0.0", "0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "10.0.0.7\n", "x" * 9999],
)
def test_what_is_no_address_of_a_node_is_refused_and_shown_short(tmp_path: Path, value: str) -> None:
    (problem,) = refused(tmp_path, 'http:\n  listen: "$NODE_IP:9797"\n', {"NODE_IP": value})

    assert problem.startswith("line 2: http.listen: has $NODE_IP, and NODE_IP in the environment is '")
    assert problem.endswith("it must be one address of this node, such as 10.0.0.7 or fd00::7")
    assert len(problem) < 250
    assert problem.isprintable()


def test_settings_that_are_no_address_keep_the_text(tmp_path: Path) -> None:
    file = tmp_path / "nodediag.yaml"
    file.write_text('node_name: "$NODE_IP"\n')

    assert load(file, {"NODE_IP": "10.0.0.7"}).settings.node_name == "$NODE_IP"


def test_what_it_becomes_is_still_checked(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, 'http: {listen: "$NODE_IP:http"}\n', {"NODE_IP": "10.0.0.7"})

    assert problem.startswith("line 1: http.listen: must be host:port")


def test_the_address_it_becomes_can_be_listened_on() -> None:
    host, _, port = expanded("$NODE_IP:0", {"NODE_IP": "::1"}).rpartition(":")

    with socket.socket(socket.AF_INET6) as server:
        server.bind((host.strip("[]"), int(port)))
