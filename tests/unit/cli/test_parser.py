"""The words of the command line."""

import subprocess
import sys

import pytest

from agent import __version__
from agent.cli import actions, check, config, evidence, remediate, remediations, report, run, watch
from agent.cli.parser import parse


def exit_of(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        parse(list(words))
    return caught.value.code


@pytest.mark.parametrize("module", [run, check, config])
def test_each_subcommand_leads_to_its_function(module: object) -> None:
    function, arguments = parse([module.NAME, "--config", "/etc/nodediag.yaml"])  # type: ignore[attr-defined]
    assert function is module.main  # type: ignore[attr-defined]
    assert str(arguments.config) == "/etc/nodediag.yaml"


@pytest.mark.parametrize("module", [report, watch, actions, remediations, evidence])
def test_the_clients_ask_the_default_socket_unless_told_otherwise(module: object) -> None:
    name = module.NAME  # type: ignore[attr-defined]
    function, arguments = parse([name])
    assert function is module.main  # type: ignore[attr-defined]
    assert (arguments.endpoint, arguments.format) == ("unix:/run/nodediag/nodediag.sock", "text")
    _, arguments = parse([name, "--endpoint", "unix:/tmp/n.sock", "--format", "json"])
    assert (arguments.endpoint, arguments.format) == ("unix:/tmp/n.sock", "json")


def test_watch_takes_types_one_by_one() -> None:
    _, arguments = parse(["watch", "--type", "DNSUnavailable", "--type", "PLEGUnhealthy"])
    assert arguments.type == ["DNSUnavailable", "PLEGUnhealthy"]


def test_check_takes_detectors_one_by_one() -> None:
    _, arguments = parse(["check", "--detector", "conntrack_dns", "--detector", "kubelet_healthz"])
    assert arguments.detector == ["conntrack_dns", "kubelet_healthz"]
    assert arguments.format == "text"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["chekc"], "invalid choice: 'chekc'"),
        (["check", "--detector", "dns"], "invalid choice: 'dns' (choose from 'containerd_shim', 'defunct_processes'"),
        (["check", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["config", "--config", "a", "--check", "b"], "not allowed with argument"),
        (["report", "--endpoint", "10.0.0.1"], "argument --endpoint: must be unix: and an absolute path"),
        (["watch", "--endpoint", "nodediag.sock"], "argument --endpoint: must be unix: and an absolute path"),
        (["run", "now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_usage_is_undetermined_and_told_on_standard_error(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert exit_of(*words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.startswith("usage: nodediag")


def test_help_names_every_subcommand_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    for module in (run, check, report, watch, actions, remediate, remediations, evidence, config):
        assert f"{module.NAME} {module.HELP}" in words
    assert "0 nothing is wrong, 1 something is, 2 it could not be determined" in words


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--version") == 0
    assert capsys.readouterr().out == f"nodediag {__version__}\n"


@pytest.mark.parametrize("name", ["report", "watch", "actions", "remediate", "remediations", "evidence"])
def test_a_client_loads_neither_settings_nor_detectors_nor_what_those_need(name: str) -> None:
    program = (
        "import contextlib, sys\n"
        "from agent.cli.parser import parse\n"
        f"with contextlib.suppress(SystemExit): parse(['{name}', '--help'])\n"
        "heavy = {'agent.settings', 'agent.app', 'agent.host', 'asyncio', 'google', 'grpc', 'h2', 'yaml'}\n"
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    assert done.stderr.strip() == ""
