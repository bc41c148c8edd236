"""The table `node_conditions`: off by default, and mistakes in it are refused."""

from pathlib import Path

import pytest

from agent.settings import SettingsError, load


def refusal(folder: Path, table: str) -> str:
    file = folder / "nodediag.yaml"
    file.write_text(f"node_conditions: {table}\n")
    with pytest.raises(SettingsError) as refused:
        load(file)
    return str(refused.value)


def test_it_is_off_and_its_defaults_are_those_of_the_documents() -> None:
    table = load(None).settings.node_conditions
    assert (table.enabled, table.events) == (False, True)
    assert (table.heartbeat_seconds, table.min_interval_seconds) == (300.0, 10.0)
    assert (table.server, table.ca_file, table.token_file) == ("", "", "")


@pytest.mark.parametrize("server", ["https://10.0.0.1:6443", "https://[2001:db8::1]", "https://api.example.org/"])
def test_an_api_server_is_taken(tmp_path: Path, server: str) -> None:
    file = tmp_path / "nodediag.yaml"
    file.write_text(f"node_conditions: {{server: '{server}'}}\n")
    assert load(file).settings.node_conditions.server == server


@pytest.mark.parametrize(
    "server",
    [
        *("http://10.0.0.1", "10.0.0.1:6443", "https://", "https://10.0.0.1:0", "https://10.0.0.1:70000"),
        *("https://10.0.0.1/api", "https://jane@10.0.0.1", "https://10.0.0.1?x", "https://a b", "https://[::1"),
    ],
)
def test_what_would_show_the_token_to_nobody_knows_whom_is_refused(tmp_path: Path, server: str) -> None:
    assert "node_conditions.server: must be https:// and a host" in refusal(tmp_path, f"{{server: '{server}'}}")


def test_a_heartbeat_faster_than_a_minute_or_than_the_interval_is_refused(tmp_path: Path) -> None:
    assert "node_conditions.heartbeat_seconds" in refusal(tmp_path, "{heartbeat_seconds: 10}")
    slow = refusal(tmp_path, "{heartbeat_seconds: 100, min_interval_seconds: 200}")
    assert "node_conditions.min_interval_seconds: must be less than heartbeat_seconds (100)" in slow
