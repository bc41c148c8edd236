"""The API on a real socket: what it answers, what it refuses, and that nobody can hold it."""

import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from agent.api import grpc_server as server_module
from agent.api.diagnostics import Diagnostics
from agent.api.endpoint import EndpointError, EndpointInUseError, Place, address_of
from agent.api.limits import MAX_CALLS, MAX_RECEIVED_BYTES
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.api.server import ApiServer
from agent.client import Client, ClientError
from agent.model import (
    ActiveFinding,
    Changed,
    Condition,
    DetectorState,
    DetectorStatus,
    Event,
    Removed,
    Snapshot,
    Status,
)
from agent.pipeline.board import Board, Entry
from agent.pipeline.feed import MAX_WATCHERS, Feed
from agent.remediation.evidence import EvidenceStore
from tests.integration.api.behind_tls import READER, TlsAgent
from tests.lab.certificates import Authority
from tests.lab.waiting import wait_until
from tests.unit.builders import RealClock
from tests.unit.doubles import DIRTY, SICK, finding

SERVICE = "nodediag.v1.DiagnosticsService"
STOP_SECONDS = 15


@dataclass
class Served:
    """An agent's board and the API that serves it."""

    board: Board
    api: ApiServer

    def client(self, deadline_seconds: float = 30.0) -> Client:
        return Client(self.api.listen, deadline_seconds)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(address_of(self.api.listen))

    def say(self, *conditions: Condition, state: DetectorState = DetectorState.OK, detector: str = "doctor") -> None:
        self.board.publish(Entry(DetectorStatus(detector, state), conditions))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nodediag.sock"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[[], Served]]:
    with ExitStack() as stack:

        def make(listen: str = f"unix:{path}") -> Served:
            board = Board("worker-3", RealClock())
            feed = Feed(board)
            evidence = EvidenceStore(path.parent / "evidence", time.time)
            services = [server_module.diagnostics(Diagnostics(board, feed, (SICK, DIRTY), evidence))]
            served = Served(board, ApiServer(Place(listen), board, feed, lambda: services))
            stack.callback(served.api.stop)
            return served

        yield make


@pytest.fixture
def served(make: Callable[[], Served]) -> Served:
    served = make()
    served.api.start()
    return served


def condition(reason: str = "AsExpected", kind: str = SICK, *pids: int, message: str = "") -> Condition:
    findings = tuple(ActiveFinding(finding(kind, pid=pid), 1e9) for pid in pids)
    return Condition(kind, Status.TRUE if pids else Status.FALSE, reason, message, 1e9, findings)


def detail(error: Any, kind: type[Any]) -> Any:
    """The one google.rpc detail of this kind in an error."""
    status = rpc_status.from_call(error)
    assert status is not None
    unpacked = kind()
    assert [packed.Unpack(unpacked) for packed in status.details].count(True) == 1
    return unpacked


def health(channel: grpc.Channel) -> Any:
    """The standard health service's client, which has no types."""
    return health_pb2_grpc.HealthStub(channel)


# -- the report


def test_the_report_is_the_board(served: Served) -> None:
    served.say(condition("Fever", SICK, 7, 8))
    with served.client() as client:
        report = client.get_node_report()
    assert report.node_name == "worker-3"
    assert abs(report.observed_at - time.time()) < 5
    assert (report.conditions, report.detectors) == (
        served.board.report().conditions,
        served.board.report().detectors,
    )


def test_a_report_waits_for_no_probe_and_for_no_watcher(served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_WATCHERS):
            next(stack.enter_context(served.client()).watch())
        client = stack.enter_context(served.client())
        client.get_node_report()
        began = time.monotonic()
        for _ in range(20):
            client.get_node_report()
        assert time.monotonic() - began < 30


def test_a_report_with_thousands_of_findings_arrives(served: Served) -> None:
    served.say(condition("Fever", SICK, *range(1, 5001), message="x" * 1000))
    with served.client() as client:
        (seen,) = client.get_node_report().conditions
    assert len(seen.findings) == 5000


# -- watching


def test_a_watch_tells_a_snapshot_then_changes_then_removals(served: Served) -> None:
    served.say(condition(), condition(kind=DIRTY))
    with served.client() as client:
        events = client.watch()
        assert next(events) == Snapshot((condition(), condition(kind=DIRTY)))
        served.say(condition("Fever", SICK, 7), condition(kind=DIRTY))
        assert next(events) == Changed(condition("Fever", SICK, 7))
        served.say(state=DetectorState.NOT_APPLICABLE)
        assert [next(events), next(events)] == [Removed(SICK), Removed(DIRTY)]


def test_a_watch_of_one_type_tells_nothing_of_others(served: Served) -> None:
    served.say(condition(), condition(kind=DIRTY))
    with served.client() as client:
        events = client.watch([DIRTY])
        assert next(events) == Snapshot((condition(kind=DIRTY),))
        served.say(condition("Fever", SICK, 7), condition("Mud", DIRTY, 7))
        assert next(events) == Changed(condition("Mud", DIRTY, 7))


def test_a_type_that_is_no_condition_is_refused_with_its_place(served: Served) -> None:
    with served.channel() as channel:
        watch = pb_grpc.DiagnosticsServiceStub(channel).WatchConditions
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(pb.WatchConditionsRequest(types=[SICK, "NodeSad", "x" * 1000])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = detail(caught.value, error_details_pb2.BadRequest)
    assert [violation.field for violation in told.field_violations] == ["types[1]", "types[2]"]
    first, second = (violation.description for violation in told.field_violations)
    assert first == f"NodeSad is no condition of this agent; there are: {DIRTY}, {SICK}"
    assert len(second) < 200
    with served.client() as client, pytest.raises(ClientError, match="INVALID_ARGUMENT: types\\[0\\]: NodeSad is no"):
        next(client.watch(["NodeSad"]))


def test_the_watcher_over_the_limit_is_refused_and_a_place_given_back_is_taken(served: Served) -> None:
    with ExitStack() as stack:
        watches = [stack.enter_context(served.client()).watch() for _ in range(MAX_WATCHERS)]
        assert [next(watch) for watch in watches] == [Snapshot(())] * MAX_WATCHERS
        with served.channel() as channel:
            watch = pb_grpc.DiagnosticsServiceStub(channel).WatchConditions
            with pytest.raises(grpc.RpcError) as caught:
                next(watch(pb.WatchConditionsRequest()))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = detail(caught.value, error_details_pb2.ErrorInfo)
        assert (told.reason, told.domain) == ("TOO_MANY_WATCHERS", "nodediag.v1")
        assert dict(told.metadata) == {"limit": str(MAX_WATCHERS)}

        watches[5].close()
        client = stack.enter_context(served.client())
        assert wait_until(lambda: admitted(client), 30, "the place is free") == Snapshot(())


def admitted(client: Client) -> Event | None:
    with suppress(ClientError):
        return next(client.watch())
    return None


def test_100_watchers_at_once_leave_16_and_the_others_are_refused(served: Served) -> None:
    results: list[str] = []
    done = threading.Event()

    def watch() -> None:
        with served.client() as client:
            try:
                for _ in client.watch():
                    results.append("told")
                    done.wait(20)
                    return
            except ClientError as error:
                results.append(error.code.name)

    threads = [threading.Thread(target=watch, daemon=True) for _ in range(100)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(results) == 100, 20, "all have an answer")
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert results.count("told") == MAX_WATCHERS
    assert results.count("RESOURCE_EXHAUSTED") == 100 - MAX_WATCHERS


def test_a_watcher_that_never_reads_costs_bounded_memory_and_is_told_of_its_gap(served: Served) -> None:
    served.say(condition("Start"))
    with served.client() as client:
        idle = client._stub.WatchConditions(pb.WatchConditionsRequest())
        wait_until(lambda: len(served.api._feed._watchers) == 1, 30, "it is admitted")
        grown = []
        for _ in range(2):
            before = resident()
            for number in range(3000):
                served.say(condition(f"Reason{number}", SICK, 7, message="x" * 10_000))
            grown.append(resident() - before)
        last = condition("Last")
        served.say(last)
        answers, missed = 0, 0
        for answer in idle:
            answers += 1
            missed += answer.gap.missed
            if "Last" in {answer.changed.reason, *(each.reason for each in answer.snapshot.conditions)}:
                break
    assert missed > 100
    assert answers < 1000
    assert grown[1] < 8 << 20  # 30 MB were said


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_caller_that_goes_away_gives_its_place_back(served: Served) -> None:
    with served.client() as client:
        next(client.watch())
    wait_until(lambda: not served.api._feed._watchers, 30, "its place is free")


def test_a_client_that_is_closed_ends_its_watch(served: Served) -> None:
    client = served.client()
    watch = client.watch()
    next(watch)
    threading.Timer(0.1, client.close).start()
    assert list(watch) == []


# -- health and reflection


def test_health_is_serving_once_every_detector_has_looked(make: Callable[[], Served]) -> None:
    served = make()
    served.say(state=DetectorState.STARTING, detector="one")
    served.say(state=DetectorState.STARTING, detector="two")
    served.api.start()
    with served.channel() as channel:
        stub = health(channel)

        def state(service: str) -> str:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        watched = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert {state(""), state(SERVICE)} == {"NOT_SERVING"}
        served.say(state=DetectorState.OK, detector="one")
        assert state("") == "NOT_SERVING"
        served.say(state=DetectorState.OVERDUE, detector="two")
        assert {state(""), state(SERVICE)} == {"SERVING"}
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        served.api.stop()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watched)


def test_health_of_a_service_there_is_not(served: Served) -> None:
    with served.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        health(channel).Check(health_pb2.HealthCheckRequest(service="nodediag.v2.X"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_a_stranger_what_there_is(served: Served) -> None:
    with served.channel() as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        file = database.FindFileContainingSymbol(SERVICE)
    (service,) = file.service
    assert [(method.name, method.server_streaming) for method in service.method] == [
        ("GetNodeReport", False),
        ("WatchConditions", True),
        ("ListEvidence", False),
        ("FetchEvidence", True),
    ]


# -- bounds


def test_a_message_that_is_too_large_is_refused(served: Served) -> None:
    with served.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        next(
            pb_grpc.DiagnosticsServiceStub(channel).WatchConditions(
                pb.WatchConditionsRequest(types=["x" * MAX_RECEIVED_BYTES])
            )
        )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_http2_and_no_proto_harm_nobody(served: Served, path: Path) -> None:
    for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100):
        with socket.socket(socket.AF_UNIX) as stranger, suppress(OSError):
            stranger.connect(os.fspath(path))
            stranger.sendall(junk)
            stranger.settimeout(1)
            stranger.recv(100)
    with served.channel() as channel:
        raw: Any = channel.unary_unary(f"/{SERVICE}/GetNodeReport")
        with pytest.raises(grpc.RpcError):
            raw(b"\xff\xff\xff", timeout=30)
        unknown: Any = channel.unary_unary(f"/{SERVICE}/Remediate")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with served.client() as client:
        client.get_node_report()


def test_streams_nobody_ends_leave_room_for_nobody_but_harm_nothing(served: Served) -> None:
    release = threading.Event()

    def wait() -> Iterator[bytes]:
        release.wait(20)
        yield from ()

    with ExitStack() as stack:
        channel = stack.enter_context(served.channel())
        stack.callback(release.set)
        talk: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        streams = [talk(wait()) for _ in range(MAX_CALLS + 8)]
        client = stack.enter_context(served.client(deadline_seconds=2))

        def refused() -> bool:
            try:
                client.get_node_report()
            except ClientError as error:
                return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        def full() -> bool:
            streams.append(talk(wait()))  # our own question may have taken the place of one that came late
            return refused()

        wait_until(full, 30, "every call is taken, and one more is refused at once")
        for stream in streams:
            stream.cancel()
        wait_until(lambda: not refused(), 30, "there is room again")


# -- starting and stopping


def test_the_socket_is_ours_alone_and_goes_with_us(served: Served, path: Path) -> None:
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    mask = os.umask(0o022)
    os.umask(mask)
    assert mask != 0o177
    served.api.stop()
    served.api.stop()
    assert not path.exists()


def test_a_missing_folder_is_made(make: Callable[[str], Served], tmp_path: Path) -> None:
    served = make(f"unix:{tmp_path}/run/nodediag/n.sock")
    served.api.start()
    assert stat.S_IMODE((tmp_path / "run" / "nodediag").stat().st_mode) == 0o755
    with served.client() as client:
        assert client.get_node_report().node_name == "worker-3"


@pytest.mark.parametrize("name", ["a b.sock", "100%41.sock", "ä#?.sock"])
def test_a_path_is_a_path_whatever_it_would_mean_in_a_uri(
    make: Callable[[str], Served], tmp_path: Path, name: str
) -> None:
    served = make(f"unix:{tmp_path}/{name}")
    served.api.start()
    assert stat.S_ISSOCK((tmp_path / name).stat().st_mode)
    with served.client() as client:
        assert client.get_node_report().node_name == "worker-3"


def test_a_socket_left_over_is_replaced(make: Callable[[], Served], path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(os.fspath(path))
    served = make()
    served.api.start()
    with served.client() as client:
        client.get_node_report()


def test_a_socket_somebody_answers_on_is_not(served: Served, make: Callable[[], Served]) -> None:
    with pytest.raises(EndpointInUseError, match="another nodediag is running and answers there"):
        make().api.start()
    with served.client() as client:
        client.get_node_report()


def test_a_socket_of_somebody_too_busy_to_answer_is_not_taken(make: Callable[[], Served], path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as stack:
        busy.bind(os.fspath(path))
        busy.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(os.fspath(path))
        with pytest.raises(EndpointInUseError):
            make().api.start()


def test_what_is_no_socket_is_left_alone(make: Callable[[], Served], path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(EndpointError, match="something lies there that is no socket"):
        make().api.start()
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(EndpointError, match="something lies there that is no socket"):
        make().api.start()


def test_a_folder_that_cannot_be_made_is_told_plainly(make: Callable[[str], Served], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EndpointError) as caught:
        make(f"unix:{tmp_path}/file/n.sock").api.start()
    assert f"cannot serve gRPC on unix:{tmp_path}/file/n.sock: " in str(caught.value)
    assert "Set grpc.listen to unix:PATH in a folder this user may write to" in str(caught.value)
    with pytest.raises(EndpointError, match="cannot serve gRPC on unix:/proc/n"):
        make("unix:/proc/n.sock").api.start()


def test_stop_is_quick_with_every_kind_of_call_open(served: Served) -> None:
    with ExitStack() as stack:
        watches = [stack.enter_context(served.client()).watch() for _ in range(MAX_WATCHERS)]
        for watch in watches:
            next(watch)
        channel = stack.enter_context(served.channel())
        talk: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        hanging = talk(iter(threading.Event().wait, True))
        looked = health(channel).Watch(health_pb2.HealthCheckRequest())
        next(looked)
        began = time.monotonic()
        served.api.stop()
        assert time.monotonic() - began < STOP_SECONDS
        with pytest.raises(ClientError, match="the agent is stopping") as caught:
            next(watches[0])
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        hanging.cancel()


# -- the client


def test_nobody_there_is_told_plainly(path: Path) -> None:
    with Client(f"unix:{path}") as client, pytest.raises(ClientError) as caught:
        client.get_node_report()
    asked = "Is the agent running, and is --endpoint right?"
    assert str(caught.value) == f"no agent answers on unix:{path}: No such file or directory. {asked}"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(os.fspath(path))
    with Client(f"unix:{path}") as client, pytest.raises(ClientError, match=r"Connection refused\. Is the agent"):
        next(client.watch())


def test_somebody_who_never_answers_is_told_plainly(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(os.fspath(path))
        silent.listen(4)
        began = time.monotonic()
        with Client(f"unix:{path}", 0.5) as client, pytest.raises(ClientError, match=r"not answered for 0\.5 s"):
            client.get_node_report()
        with Client(f"unix:{path}", 0.5) as client, pytest.raises(ClientError, match=r"not answered for 0\.5 s"):
            next(client.watch())
        assert time.monotonic() - began < 30


def test_grpc_is_not_loaded_by_who_does_not_need_it() -> None:
    program = (
        "import sys, agent.cli.run, agent.act_flow, agent.api.server\n"
        "assert not {'grpc', 'google.rpc', 'grpc_health', 'grpc_reflection'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# -- over TCP


@pytest.fixture
def over_tcp(tmp_path: Path) -> Iterator[TlsAgent]:
    agent = TlsAgent(tmp_path / "tls")
    yield agent
    agent.api.stop()


def at(agent: TlsAgent, listen: str) -> ApiServer:
    return ApiServer(replace(agent.place, listen=listen), agent.board, Feed(agent.board), list)


def test_port_0_is_one_that_is_free_and_it_is_told(over_tcp: TlsAgent) -> None:
    assert over_tcp.api.endpoint == "127.0.0.1:0"
    over_tcp.api.start()
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", over_tcp.api.endpoint)
    with over_tcp.client(READER) as client:
        assert client.get_node_report().node_name == "worker-3"


def test_a_port_somebody_listens_on_is_not_shared(over_tcp: TlsAgent) -> None:
    over_tcp.api.start()
    second = at(over_tcp, over_tcp.api.endpoint)
    with pytest.raises(EndpointInUseError, match=r"in use\. Set grpc.listen to an address of this node"):
        second.start()
    with socket.socket() as willing:
        willing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        willing.bind(("127.0.0.1", 0))
        willing.listen()
        with pytest.raises(EndpointInUseError):
            at(over_tcp, f"127.0.0.1:{willing.getsockname()[1]}").start()
    with socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="Address already in use"):
            late.bind(("127.0.0.1", int(over_tcp.api.endpoint.split(":")[1])))


@pytest.mark.parametrize(
    ("listen", "why"),
    [("192.0.2.1:0", "Cannot assign requested address"), ("no-such-host.invalid:9798", "[Nn]ame")],
)
def test_an_address_that_is_not_ours_is_told_plainly(over_tcp: TlsAgent, listen: str, why: str) -> None:
    with pytest.raises(EndpointError, match=f"cannot serve gRPC on {listen}: .*{why}"):
        at(over_tcp, listen).start()


def test_a_name_is_served_on_at_one_address(over_tcp: TlsAgent) -> None:
    api = at(over_tcp, "localhost:0")
    api.start()
    assert api.endpoint.startswith("localhost:")
    with grpc.insecure_channel(api.endpoint) as channel, pytest.raises(grpc.RpcError):  # no certificate, no answer
        health(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    api.stop()


def test_without_callers_or_certificates_nothing_is_served_over_tcp(over_tcp: TlsAgent) -> None:
    for place in (Place("127.0.0.1:0"), replace(over_tcp.place, callers=()), replace(over_tcp.place, tls=None)):
        with pytest.raises(EndpointError, match=r"over TCP, grpc\.tls and grpc\.callers must be set"):
            ApiServer(place, over_tcp.board, Feed(over_tcp.board), list).start()


def test_services_that_cannot_be_started_are_tried_again_for_the_next_caller(
    served: Served, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = served.api._services

    def broken(_: grpc.Server) -> str:
        raise RuntimeError("no such service")

    served.api._services = lambda: [broken]
    with served.client(0.5) as client, pytest.raises(ClientError):
        client.get_node_report()
    assert "no such service" in caplog.text
    assert list(path.parent.iterdir()) == [path]
    served.api._services = good
    with served.client() as client:
        assert client.get_node_report().node_name == "worker-3"


# -- the client over TCP


def test_the_client_tells_what_is_wrong_with_certificates(over_tcp: TlsAgent, tmp_path: Path) -> None:
    over_tcp.api.start()
    other = Authority("other")
    (tmp_path / "other.crt").write_bytes(other.pem)
    good = over_tcp.identify(over_tcp.authority.issue(READER), "good")
    late = over_tcp.identify(over_tcp.authority.issue(READER, seconds=-1), "late")
    foreign = over_tcp.identify(other.issue(READER), "foreign")
    cases = {
        r"not signed by the authority you trust\. Is --ca": replace(good, ca_file=str(tmp_path / "other.crt")),
        r"not made out to this host\. Is the host in --endpoint": replace(good, server_name="worker-4"),
        r"because of your certificate\. Is it valid now, and signed by": late,
        r"because of your certificate\. Is it valid now,.* and signed by an": foreign,
    }
    for told, tls in cases.items():
        with Client(over_tcp.api.endpoint, tls=tls) as client, pytest.raises(ClientError, match=told):
            client.get_node_report()
    with Client(over_tcp.api.endpoint, tls=replace(good, server_name="localhost")) as client:
        client.get_node_report()
    over_tcp.files.swap(over_tcp.authority.issue("127.0.0.1", seconds=-1), over_tcp.authority.pem)
    over_tcp.api.stop()
    over_tcp.api.start()
    with (
        Client(over_tcp.api.endpoint, tls=good) as client,
        pytest.raises(ClientError, match=r"its certificate has expired\. Is it renewed on the node"),
    ):
        client.get_node_report()


def test_the_client_needs_certificates_over_tcp_and_there_alone(over_tcp: TlsAgent) -> None:
    good = over_tcp.identify(over_tcp.authority.issue(READER), "good")
    other = over_tcp.identify(over_tcp.authority.issue(READER), "other")
    cases = {
        r"over TCP \(10\.0\.0\.7:9798\) .* are needed: --cert, --key and --ca": None,
        r"are needed: --cert, --key and --ca": replace(good, ca_file=""),
        r"/nowhere cannot be read: No such file": replace(good, cert_file="/nowhere"),
        r"the key that belongs to it.*key values mismatch": replace(good, key_file=other.key_file),
        r"an authority, in PEM form": replace(good, ca_file=good.key_file),
    }
    for told, tls in cases.items():
        with pytest.raises(ClientError, match=told):
            Client("10.0.0.7:9798", tls=tls)
    with pytest.raises(ClientError, match=r"are of no use on unix:/run/x\.sock: leave them out"):
        Client("unix:/run/x.sock", tls=good)
