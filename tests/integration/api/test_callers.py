"""Who calls: what a certificate or a socket proves, and that nobody else gets an answer."""

import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from agent.acts import Caller
from agent.api import callers as module
from agent.api.callers import ALL_ACTIONS, CallerCheck, StrangerError, by_certificate, by_user, caller_of
from agent.api.certificate_names import URI, CertificateName, alternative_names
from agent.api.limits import AGE_SECONDS, GRACE_SECONDS, MAX_CALLS, Deadlines, seconds_left
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.api.reception import Visitor
from agent.client import ClientError
from agent.model import Action
from tests.integration.api.behind_tls import CALLERS, CONTROLLER, READER, TlsAgent
from tests.lab.certificates import Authority, Name
from tests.lab.waiting import wait_until

STRANGER = "spiffe://lab/ns/ops/sa/someone-else"


class WhoAmI:
    """A service that tells who calls it, in each of the four forms of a method."""

    def __call__(self, server: grpc.Server) -> str:
        make: dict[str, Any] = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(lambda _, context: told(context)),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(lambda _, context: iter([told(context)])),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(lambda _, context: told(context)),
            "StreamStream": grpc.stream_stream_rpc_method_handler(lambda _, context: iter([told(context)])),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.WhoAmI", make),))
        return "lab.WhoAmI"


def told(context: grpc.ServicerContext) -> bytes:
    caller = caller_of(context)
    return f"{caller.identity} {' '.join(sorted(caller.actions))}".encode()


def ask(channel: Any, form: str) -> str:
    """Ask who we are by one form of method."""
    path = f"/lab.WhoAmI/{form}"
    calls: dict[str, Callable[[], Any]] = {
        "UnaryUnary": lambda: channel.unary_unary(path)(b"", timeout=30),
        "UnaryStream": lambda: next(channel.unary_stream(path)(b"", timeout=30)),
        "StreamUnary": lambda: channel.stream_unary(path)(iter([b""]), timeout=30),
        "StreamStream": lambda: next(channel.stream_stream(path)(iter([b""]), timeout=30)),
    }
    return str(calls[form]().decode())


FORMS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsAgent]:
    agent = TlsAgent(tmp_path_factory.mktemp("tls"), (WhoAmI(),))
    agent.api.start()
    yield agent
    agent.api.stop()


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, str]:
    """Code, message and reason of a refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is not None:
        packed: AnyMessage = status.details[0]
        assert packed.Unpack(info)
    return error.code(), error.details(), info.reason


# -- by certificate


@pytest.mark.parametrize("form", FORMS)
def test_a_caller_is_who_its_certificate_names_and_may_what_the_settings_say(agent: TlsAgent, form: str) -> None:
    with agent.channel(CONTROLLER) as channel:
        assert ask(channel, form) == f"{CONTROLLER} KillShim"
    with agent.channel("other.ops.svc", READER, "10.0.0.1", STRANGER) as channel:
        assert ask(channel, form) == f"{READER} "


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_caller_is_refused_whatever_it_asks(agent: TlsAgent, form: str) -> None:
    with agent.channel(STRANGER, "x.ops.svc") as channel:
        code, message, reason = refused(lambda: ask(channel, form))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_UNKNOWN")
    assert message == (
        f"your certificate names {STRANGER}, x.ops.svc, and no caller in the agent's setting grpc.callers is called so"
    )


def test_an_unknown_caller_learns_health_and_nothing_else(agent: TlsAgent) -> None:
    with agent.channel(STRANGER) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        stub = pb_grpc.DiagnosticsServiceStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        calls: list[Callable[[], object]] = [
            lambda: next(health.Watch(health_pb2.HealthCheckRequest(), timeout=30)),
            lambda: next(reflection.ServerReflectionInfo(iter([question]), timeout=30)),
            lambda: stub.GetNodeReport(pb.GetNodeReportRequest(), timeout=30),
            lambda: next(stub.WatchConditions(pb.WatchConditionsRequest(), timeout=30)),
        ]
        assert [refused(call)[0] for call in calls] == [grpc.StatusCode.PERMISSION_DENIED] * len(calls)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=30).status


@pytest.mark.parametrize(
    "names",
    [
        (),
        (f"{CONTROLLER}/x",),
        (CONTROLLER.upper(),),
        ("*.ops.svc",),
        ("READER.ops.svc",),
        (x509.DNSName(f"{READER}\0.example.org"),),
        (x509.UniformResourceIdentifier(f"{CONTROLLER}\0"),),
        (x509.RFC822Name(READER),),
        (x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),),
        (x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, READER)])),),
        (READER, CONTROLLER),
    ],
    ids=str,
)
def test_nothing_but_the_whole_name_of_one_caller_will_do(agent: TlsAgent, names: tuple[Name | str, ...]) -> None:
    with agent.channel(*names) as channel:
        code, _, reason = refused(lambda: ask(channel, "UnaryUnary"))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_UNKNOWN")


def test_what_a_certificate_names_is_repeated_in_bounds_and_printable(agent: TlsAgent) -> None:
    names: list[Name | str] = [
        x509.DNSName("\x1b[2J\n"),
        *(f"{number}{'x' * 300}.example" for number in range(3)),
        *("a", "b"),
    ]
    with agent.channel(*names) as channel:
        _, message, _ = refused(lambda: ask(channel, "UnaryUnary"))
    assert message.startswith(r"your certificate names \x1b[2J\n, 0xxx")
    assert "... and 2 more, and no caller" in message
    assert len(message) < 600


def test_the_client_says_what_was_refused(agent: TlsAgent) -> None:
    with agent.client(STRANGER) as client, pytest.raises(ClientError, match="no caller in the agent's setting"):
        client.get_node_report()
    with agent.client(READER) as client:
        assert client.get_node_report().node_name == "worker-3"
        next(client.watch())


def test_whoever_cannot_be_recognized_for_a_fault_of_ours_is_refused() -> None:
    def broken(context: grpc.ServicerContext) -> Caller:
        raise KeyError("x")

    class AbortedError(Exception):
        pass

    class Context:
        code: grpc.StatusCode | None = None

        def abort_with_status(self, status: grpc.Status) -> None:
            self.code = status.code
            raise AbortedError

    context: Any = Context()
    with pytest.raises(AbortedError):
        CallerCheck(broken, Deadlines())._admit(context)
    assert context.code is grpc.StatusCode.UNAUTHENTICATED
    context = Context()
    with pytest.raises(AbortedError):
        caller_of(context)  # nobody has looked at this call
    assert context.code is grpc.StatusCode.UNAUTHENTICATED


def context_of(peer: str) -> Any:
    class Context:
        def peer(self) -> str:
            return peer

    return Context()


CONTROLLER_NAME = CertificateName(URI, CONTROLLER.encode())


def test_a_caller_is_known_by_the_door_it_came_through_and_by_nothing_else() -> None:
    visitors = {"a": Visitor(uid=1000), "b": Visitor(names=(CONTROLLER_NAME,)), "c": Visitor()}
    user, certificate = by_user(visitors.get), by_certificate(visitors.get, CALLERS)
    assert user(context_of("a")) == Caller("unix:uid=1000", ALL_ACTIONS)
    assert certificate(context_of("b")) == CALLERS[1]
    for recognize, peer, code in (
        (user, "b", grpc.StatusCode.UNAUTHENTICATED),
        (user, "unix:", grpc.StatusCode.UNAUTHENTICATED),
        (certificate, "a", grpc.StatusCode.UNAUTHENTICATED),
        (certificate, "ipv4:127.0.0.1:1", grpc.StatusCode.UNAUTHENTICATED),
        (certificate, "c", grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(StrangerError) as caught:
            recognize(context_of(peer))
        assert caught.value.status.code is code


def test_on_the_socket_everything_that_is_an_action_may_be_asked_for() -> None:
    assert Action.NONE not in ALL_ACTIONS
    assert len(ALL_ACTIONS) == len(Action) - 1


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_a_certificate_fail_otherwise(der: bytes) -> None:
    with suppress(ValueError):
        alternative_names(der)


def test_a_certificate_cut_anywhere_has_no_names_it_had_not() -> None:
    whole = ssl.PEM_cert_to_DER_cert(Authority("a").issue(READER, CONTROLLER, "10.0.0.1").cert.decode())
    names = [name.identity for name in alternative_names(whole)]
    assert names == [READER.encode(), CONTROLLER.encode(), None]
    for size in range(len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011 - any
            alternative_names(whole[:size])


# -- by user


USER = 65_534
NODE = """
import os, sys
from pathlib import Path
from agent.api.endpoint import Place
from agent.api.server import ApiServer
from agent.pipeline.board import Board
from agent.pipeline.feed import Feed
from agent.api.callers import caller_of
import agent.api.grpc_server  # as long as we may read it
from tests.unit.builders import RealClock
import grpc
def who(server):
    tell = grpc.unary_unary_rpc_method_handler(lambda _, context: caller_of(context).identity.encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.WhoAmI", {"Tell": tell}),))
    return "lab.WhoAmI"
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
board = Board("n", RealClock())
api = ApiServer(Place("unix:" + sys.argv[1]), board, Feed(board), lambda: [who])
api.start()
os.chmod(sys.argv[1], 0o666)
print("up", flush=True)
sys.stdin.readline()
api.stop()
"""
CALL = """
import grpc, grpc._channel, os, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    try:
        print(channel.unary_unary("/lab.WhoAmI/Tell")(b"", timeout=20).decode())
    except grpc.RpcError as error:
        print(error.code().name)
"""


def test_real_processes_of_other_users_are_told_apart_through_grpc(everybodys_folder: Path) -> None:
    path = os.fspath(everybodys_folder / "n.sock")
    words = [sys.executable, "-c", NODE, path, str(USER)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == "up\n"
        calls = [
            subprocess.Popen([sys.executable, "-c", CALL, path, str(uid)], stdout=subprocess.PIPE, text=True)
            for uid in (USER, 0, USER - 1)
        ]
        heard = [call.communicate(timeout=30)[0].strip() for call in calls]
        node.communicate("end\n", timeout=30)
    assert heard == [f"unix:uid={USER}", "unix:uid=0", "UNAVAILABLE"]


# -- time and number


def test_a_call_without_its_request_is_ended_and_its_place_free(
    agent: TlsAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.1)
    release = threading.Event()

    def never() -> Iterator[bytes]:
        release.wait(60)
        yield from ()

    with agent.channel(READER) as channel:
        slow: Any = channel.stream_unary("/nodediag.v1.DiagnosticsService/GetNodeReport")
        calls = [slow.future(never()) for _ in range(5)]
        began = time.monotonic()
        assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
        assert time.monotonic() - began < 30
        release.set()


def test_a_stream_of_requests_that_does_not_end_is_ended(agent: TlsAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_SECONDS", 0.1)
    release = threading.Event()

    def never() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        release.wait(60)
        yield from ()

    with agent.channel(READER) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(never())
        assert call.code() is grpc.StatusCode.CANCELLED
        release.set()


def test_a_call_with_no_request_at_all_is_refused(agent: TlsAgent) -> None:
    with agent.channel(READER) as channel:
        call: Any = channel.stream_unary("/nodediag.v1.DiagnosticsService/GetNodeReport")
        assert refused(lambda: call(iter(()), timeout=30))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("allowed", "at_most", "left"), [(None, 120.0, 120.0), (3.0, 120.0, 3.0), (500.0, 120.0, 120.0), (-1.0, 120.0, 0.0)]
)
def test_a_call_may_take_what_its_caller_and_we_allow(allowed: float | None, at_most: float, left: float) -> None:
    class Context:
        def time_remaining(self) -> float | None:
            return allowed

    context: Any = Context()
    assert seconds_left(context, at_most) == left


def test_deadlines_end_what_is_late_and_nothing_else() -> None:
    deadlines = Deadlines()
    ended = threading.Event()
    spared: list[str] = []
    with deadlines.bound(0.0, lambda: spared.append("left in time")):
        pass
    forget = deadlines.watch(30.0, lambda: spared.append("not yet late"))
    with deadlines.bound(0.05, ended.set):
        assert ended.wait(30)
    forget()
    assert spared == []
    assert not deadlines._due
    thread = deadlines._thread
    assert thread is not None
    deadlines.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_fifty_calls_that_wait_leave_room_for_others(tmp_path: Path) -> None:
    release = threading.Event()
    waiting = [0]

    class Patient:
        def __call__(self, server: grpc.Server) -> str:
            def wait(_: bytes, context: grpc.ServicerContext) -> bytes:
                waiting[0] += 1
                release.wait(60)
                return b"done"

            handler: Any = grpc.unary_unary_rpc_method_handler(wait)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.P", {"Wait": handler}),))
            return "lab.P"

    agent = TlsAgent(tmp_path, (Patient(),))
    agent.api.start()
    with ExitStack() as stack:
        stack.callback(agent.api.stop)
        stack.callback(release.set)
        watches = [stack.enter_context(agent.client(READER)).watch() for _ in range(16)]
        for watch in watches:
            next(watch)
        channels = [stack.enter_context(agent.channel(READER)) for _ in range(10)]
        methods: list[Any] = [channel.unary_unary("/lab.P/Wait") for channel in channels]
        calls = [method.future(b"", timeout=30) for method in methods for _ in range(5)]
        wait_until(lambda: waiting[0] == 50, 20, "all fifty are under way")
        client = stack.enter_context(agent.client(READER))
        client.get_node_report()
        release.set()
        assert {call.result(timeout=10) for call in calls} == {b"done"}
    assert MAX_CALLS == 80


def test_an_old_connection_lasts_less_than_ten_minutes() -> None:
    assert 1.1 * AGE_SECONDS + GRACE_SECONDS < 600  # grpc spreads the age by a tenth


def test_a_connection_is_renewed_without_a_failed_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.api import grpc_server, limits  # noqa: PLC0415

    short = {"grpc.max_connection_age_ms": 100, "grpc.max_connection_age_grace_ms": 100}
    assert short.keys() < dict(limits.TCP_OPTIONS).keys()
    monkeypatch.setattr(grpc_server, "TCP_OPTIONS", tuple(short.items()))
    peers: set[str] = set()
    agent = TlsAgent(tmp_path, (Peers(peers),))
    agent.api.start()
    with agent.channel(READER) as channel, agent.client(READER) as watching:
        tell: Any = channel.unary_unary("/lab.Peers/Tell")
        deadline = time.monotonic() + 10
        while len(peers) < 3 and time.monotonic() < deadline:
            tell(b"", timeout=30)
        assert len(peers) == 3
        with pytest.raises(ClientError, match=r"ends every connection within 10 minutes.*Ask or watch again"):
            list(watching.watch())
    agent.api.stop()


class Peers:
    """A service that notes the connections it is called by."""

    def __init__(self, seen: set[str]) -> None:
        self._seen = seen

    def __call__(self, server: grpc.Server) -> str:
        def tell(_: bytes, context: grpc.ServicerContext) -> bytes:
            self._seen.add(context.peer())
            return b""

        handler: Any = grpc.unary_unary_rpc_method_handler(tell)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Peers", {"Tell": handler}),))
        return "lab.Peers"
