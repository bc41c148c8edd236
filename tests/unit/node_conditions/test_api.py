"""One request to a real TLS server: what is sent, what is not, and how long it takes at most."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.exporters.node_conditions.api import Access, ApiServer
from agent.exporters.node_conditions.calls import Call, call_for
from agent.exporters.node_conditions.plan import WriteEvent, WriteStatus
from agent.exporters.node_conditions.status import Seen
from agent.model import PodRef
from tests.lab.api_standin import ApiMode, ApiStandin
from tests.lab.certificates import Authority
from tests.unit.node_conditions.telling import DNS, HUNG, SINCE, UID, finding, ill, unseen, well

NODE = "worker-3"
STATUS = call_for(WriteStatus(Seen((ill(), well(DNS)), ("PLEGUnhealthy",))), NODE, SINCE)
EVENT = call_for(WriteEvent(finding(), exists=False, count=1), NODE, SINCE)
RENEWED = call_for(WriteEvent(finding(), exists=True, count=2), NODE, SINCE)


def client(standin: ApiStandin, seconds: float = 5.0, **access: str) -> ApiServer:
    given = {"server": standin.url, "ca_file": str(standin.ca_file), "token_file": str(standin.token_file), **access}
    return ApiServer(Access(**given), "nodediag/test", seconds)


def test_ours_are_written_and_every_other_condition_stays_as_it_is(standin: ApiStandin) -> None:
    before = standin.document
    assert client(standin).send(STATUS).done
    after = standin.document
    assert after["status"]["conditions"][: len(before["status"]["conditions"])] == before["status"]["conditions"]
    assert set(standin.conditions) - {each["type"] for each in before["status"]["conditions"]} == {HUNG, DNS}
    after["status"]["conditions"] = before["status"]["conditions"]
    assert after == before, "nothing else of the Node has changed"


def test_a_condition_that_does_not_apply_is_taken_away_whoever_left_it(standin: ApiStandin) -> None:
    standin.plant({**standin.conditions["Ready"], "type": "PLEGUnhealthy", "status": "True"})
    assert client(standin).send(STATUS).done
    assert "PLEGUnhealthy" not in standin.conditions
    assert standin.conditions["Ready"]["status"] == "True"


def test_all_three_statuses_can_be_told(standin: ApiStandin) -> None:
    for condition in (ill(), unseen(), well()):
        assert client(standin).send(call_for(WriteStatus(Seen((condition,))), NODE, SINCE)).done
        assert standin.conditions[HUNG]["status"] == condition.status.value


def test_an_event_is_created_and_renewed(standin: ApiStandin) -> None:
    assert client(standin).send(EVENT).code == 201
    assert client(standin).send(RENEWED).code == 200
    (event,) = standin.events.values()
    assert (event["count"], event["reason"], event["involvedObject"]["kind"]) == (2, "ShimUnresponsive", "Node")


def test_an_event_names_the_pod_it_is_related_to(standin: ApiStandin) -> None:
    web = finding(pod=PodRef("shop", "web-0", UID, "app"))
    assert client(standin).send(call_for(WriteEvent(web, exists=False, count=1), NODE, SINCE)).done
    (event,) = standin.events.values()
    assert event["related"] == {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": UID}


def test_what_strangers_chose_as_names_is_told_in_a_form_that_is_taken(standin: ApiStandin) -> None:
    hostile = finding(message="\x1b[31m\n\udcff" + "x" * 5000, pod=PodRef("a\nb", "c" * 400))
    assert client(standin).send(call_for(WriteEvent(hostile, exists=False, count=1), NODE, SINCE)).done
    assert client(standin).send(call_for(WriteStatus(Seen((ill(hostile),))), NODE, SINCE)).done
    assert standin.conditions[HUNG]["message"].startswith("\\x1b[31m\\n\\xff")


def test_a_token_that_rotates_is_taken_up_with_the_next_request(standin: ApiStandin) -> None:
    api = client(standin)
    assert api.send(STATUS).done
    standin.tokens = {"second-token"}
    refused = api.send(STATUS)
    assert (refused.code, refused.seldom) == (401, True)
    standin.token_file.write_text("second-token\n")
    assert api.send(STATUS).done


def test_a_token_is_never_sent_over_an_unverified_connection(standin: ApiStandin, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.crt"
    stranger.write_bytes(Authority("somebody else").pem)
    answer = client(standin, ca_file=str(stranger)).send(STATUS)
    assert (answer.label, answer.done) == ("certificate", False)
    assert "not signed by the CA file" in answer.problem
    other = tmp_path / "other"
    other.mkdir()
    with ApiStandin(other, NODE, names=("127.0.0.2",)) as elsewhere:
        assert client(elsewhere).send(STATUS).label == "certificate"
        assert elsewhere.asked == []
    assert standin.asked == []


def test_a_redirect_is_not_followed(standin: ApiStandin) -> None:
    standin.mode = ApiMode.REDIRECT
    answer = client(standin).send(STATUS)
    assert (answer.code, answer.seldom) == (307, True)
    assert [asked.path for asked in standin.asked] == [STATUS.path]


def test_a_proxy_of_the_environment_is_not_used(standin: ApiStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert client(standin).send(STATUS).done


@pytest.mark.parametrize(
    ("mode", "label", "seldom", "words"),
    [
        (ApiMode.UNAUTHORIZED, "401", True, "does not know our token"),
        (ApiMode.FORBIDDEN, "403", True, 'lacks: {apiGroups: [""], resources: [nodes/status], verbs: [patch]}'),
        (ApiMode.NOT_FOUND, "404", True, "there is no Node worker-3 (404); node_name or NODE_NAME must be"),
        (ApiMode.INVALID, "422", True, "refuses to patch nodes/status (422); it says: is invalid"),
        (ApiMode.ERROR_500, "500", False, "(500); it says: etcdserver: request timed out"),
        (ApiMode.RESET, "unreachable", False, "cannot be reached"),
        (ApiMode.GARBAGE, "unreadable", False, "something that is no API server answers"),
        (ApiMode.HUGE, "unreadable", False, "larger than"),
    ],
)
def test_each_refusal_is_explained(standin: ApiStandin, mode: ApiMode, label: str, seldom: bool, words: str) -> None:
    standin.mode = mode
    answer = client(standin).send(STATUS)
    assert (answer.label, answer.seldom, answer.done) == (label, seldom, False)
    assert words in answer.problem
    assert len(standin.asked) == 1, "what fails is not tried again here"


def test_the_missing_right_of_an_event_is_named_with_its_namespace(standin: ApiStandin) -> None:
    standin.mode = ApiMode.FORBIDDEN
    told = client(standin).send(EVENT).problem
    assert 'its role in the namespace default lacks: {apiGroups: [""], resources: [events], verbs: [create]}' in told


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17.0), ("Fri, 01 Jan 2027 00:00:00 GMT", None), ("soon", None), ("-3", None), ("9" * 400, 999999999.0)],
)
def test_retry_after_is_read(standin: ApiStandin, header: str, seconds: float | None) -> None:
    standin.mode, standin.retry_after = ApiMode.BUSY, header
    answer = client(standin).send(STATUS)
    assert answer.code == 429
    if header.endswith("GMT"):
        assert answer.retry_after is not None
        assert answer.retry_after > 0
    else:
        assert answer.retry_after == seconds


def test_an_event_that_exists_or_is_gone_is_no_trouble(standin: ApiStandin) -> None:
    api = client(standin)
    assert api.send(RENEWED).turned
    assert api.send(EVENT).done
    again = api.send(EVENT)
    assert (again.turned, again.done, again.code) == (True, False, 409)


@pytest.mark.parametrize("mode", [ApiMode.HANG, ApiMode.TRICKLE])
def test_a_request_has_one_deadline_however_slowly_it_is_answered(standin: ApiStandin, mode: ApiMode) -> None:
    standin.mode, standin.seconds = mode, 0.05
    began = time.monotonic()
    answer = client(standin, 0.4).send(STATUS)
    assert (answer.label, answer.seldom) == ("timeout", False)
    assert time.monotonic() - began < 20


def test_a_handshake_has_the_same_deadline(standin: ApiStandin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        assert client(standin, 0.3, server=url).send(STATUS).label == "timeout"
        assert time.monotonic() - began < 20


def test_a_late_answer_in_time_counts(standin: ApiStandin) -> None:
    standin.mode, standin.seconds = ApiMode.LATE, 0.2
    assert client(standin).send(STATUS).done


def test_nobody_listening_is_told(standin: ApiStandin) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        answer = client(standin, server=url).send(STATUS)
    assert (answer.label, answer.done) == ("unreachable", False)
    assert "Connection refused" in answer.problem


def test_in_a_pod_the_server_is_where_kubernetes_says(standin: ApiStandin) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(standin.port)}
    access = Access(ca_file=str(standin.ca_file), token_file=str(standin.token_file))
    assert ApiServer(access, "nodediag/test", environ=environ).send(STATUS).done


def test_outside_of_a_pod_what_is_missing_is_named(standin: ApiStandin, tmp_path: Path) -> None:
    access = Access(ca_file=str(standin.ca_file), token_file=str(standin.token_file))
    nowhere = ApiServer(access, "nodediag/test", environ={}).send(STATUS)
    assert "set node_conditions.server" in nowhere.problem
    for setting in ("token_file", "ca_file"):
        missing = client(standin, 5.0, **{setting: str(tmp_path / "none")}).send(STATUS)
        assert missing.label == "unusable"
        assert f"none (node_conditions.{setting}, or as every pod" in missing.problem


@pytest.mark.parametrize("content", ["", "two\nlines", "b\u00e4r", "x" * (1 << 21)])
def test_a_file_that_is_no_token_is_not_sent(standin: ApiStandin, content: str) -> None:
    standin.token_file.write_text(content)
    answer = client(standin).send(STATUS)
    assert (answer.label, answer.done) == ("unusable", False)
    assert str(standin.token_file) in answer.problem
    assert standin.asked == []


def test_a_ca_file_without_a_certificate_is_told(standin: ApiStandin) -> None:
    standin.ca_file.write_text("nothing")
    assert "holds no certificate of an authority" in client(standin).send(STATUS).problem


def test_of_the_kubernetes_package_only_its_rest_client_is_loaded(standin: ApiStandin) -> None:
    program = (
        "import sys\n"
        "from agent.exporters.node_conditions.api import Access, ApiServer\n"
        "from agent.exporters.node_conditions.calls import Call\n"
        "assert not any(name.startswith(('kubernetes', 'urllib3')) for name in sys.modules)\n"
        "call = Call('patch', 'nodes/status', 'n', 'PATCH', '/', 'application/strategic-merge-patch+json', {})\n"
        "print(ApiServer(Access(*sys.argv[1:]), 'a').send(call).label)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'pydantic', 'aiohttp', 'requests', 'yaml', 'websocket', 'oauthlib'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('kubernetes.client')))\n"
    )
    words = [sys.executable, "-c", program, standin.url, str(standin.ca_file), str(standin.token_file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True, env=dict(os.environ))
    label, heavy, modules = done.stdout.splitlines()
    assert (label, heavy) == ("422", "[]")
    assert "models" not in modules
    standin.complaints.clear()


def test_without_the_kubernetes_package_it_is_told_what_to_install(standin: ApiStandin) -> None:
    program = (
        "import sys\n"
        "from agent.exporters.node_conditions.api import Access, ApiServer\n"
        "from agent.exporters.node_conditions.calls import Call\n"
        "sys.modules['kubernetes'] = None\n"
        "print(ApiServer(Access(*sys.argv[1:]), 'a').send(Call('patch', 'events', '', 'PATCH', '/', '', {})).problem)\n"
    )
    words = [sys.executable, "-c", program, standin.url, str(standin.ca_file), str(standin.token_file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    assert "the Python package kubernetes is needed (nodediag[node-conditions])" in done.stdout


def test_requests_of_one_node_leave_no_connection_open(standin: ApiStandin) -> None:
    threads = threading.active_count()
    api = client(standin)
    for _ in range(5):
        assert api.send(STATUS).done
    assert len({asked.peer for asked in standin.asked}) == 5
    assert threading.active_count() <= threads + 1


def test_nothing_is_ever_read(standin: ApiStandin) -> None:
    calls: list[Call] = [STATUS, EVENT, RENEWED]
    assert all(client(standin).send(call).done for call in calls)
    assert dict(standin.used) == {
        ("", "nodes/status", "", "patch"): 1,
        ("", "events", "default", "create"): 1,
        ("", "events", "default", "patch"): 1,
    }
    assert {asked.verb for asked in standin.asked} == {"patch", "create"}
