"""The kubelet's API over real TLS on the loopback: whom it believes, how long it waits, and what it says went wrong."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.host.kubelet import KubeletApiError, KubeletApiTimeoutError
from agent.host.kubelet_api import Access, KubeletApi
from agent.host.kubelet_calls import METRICS, PODS, KubeletCalls
from agent.host.pod_list import ListedPod, read_pods
from tests.lab.certificates import CERT, HOUR, Authority, Issued, Projected, self_signed
from tests.lab.kubelet_api import Answer, closing, replying, sending
from tests.lab.kubelet_api import KubeletApi as Standin
from tests.lab.kubelet_standin import Reply, read_recording
from tests.unit.builders import ManualClock, RealClock

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kubelet"
RECORDED = read_recording(FIXTURES, "tls-pods")
HEALTHY = replying(RECORDED)
TOKEN = "eyJhbGciOiJub25lIn0.a-token.signature"
HERE = "127.0.0.1"
MEBIBYTE = 1 << 20
AUTHORITY = Authority("the cluster's authority")
STRANGER = Authority("somebody else")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

pytestmark = pytest.mark.timeout(60)


@dataclass
class Setting:
    """A stand-in, and an API that is set up to believe the authority."""

    folder: Path
    standin: Standin
    token_file: Path
    trust_file: Path
    calls: KubeletCalls

    def api(self, *, insecure: bool = False, trust: Path | None = None) -> KubeletApi:
        access = Access(self.standin.url, str(self.token_file), str(trust or self.trust_file), insecure)
        return KubeletApi(access, self.calls, RealClock())

    def get(
        self, path: str = PODS, *, seconds: float = 5.0, max_bytes: int = MEBIBYTE, insecure: bool = False
    ) -> bytes:
        """Return the whole body."""
        body = bytearray()

        def take(data: bytes) -> bool:
            body.extend(data)
            return True

        self.api(insecure=insecure).get(path, take, seconds=seconds, max_bytes=max_bytes)
        return bytes(body)

    def failure(self, *, seconds: float = 5.0, max_bytes: int = MEBIBYTE, path: str = PODS) -> str:
        with pytest.raises(KubeletApiError) as caught:
            self.get(path, seconds=seconds, max_bytes=max_bytes)
        assert TOKEN not in str(caught.value)
        assert str(caught.value).isprintable()
        return str(caught.value)

    def trust(self, *pem: bytes) -> None:
        self.trust_file.write_bytes(b"".join(pem))

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        return {sample.labels: sample.value for sample in self.calls.samples() if sample.name == name}


Serve = Callable[..., Setting]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as over:

        def serve(answer: Answer = HEALTHY, issued: Issued | None = None) -> Setting:
            token, trust = tmp_path / "token", tmp_path / "ca.crt"
            token.write_text(f"{TOKEN}\n")
            trust.write_bytes(AUTHORITY.pem)
            standin = over.enter_context(Standin(tmp_path / "server", issued or AUTHORITY.issue(HERE), answer))
            return Setting(tmp_path, standin, token, trust, KubeletCalls(RealClock()))

        yield serve


class TestAnswers:
    def test_a_recorded_list_of_pods_comes_through(self, serve: Serve) -> None:
        setting = serve()
        pods: list[ListedPod] = []
        read_pods(setting.api(), ("app",), pods.append)
        assert [each.ref.name for each in pods][-1] == "zombie-maker-peers-node"
        assert setting.counted("kubelet_api_requests_total")[PODS, "200"] == 1

    def test_the_request_is_a_plain_one_with_the_token(self, serve: Serve) -> None:
        setting = serve()
        assert setting.get() == RECORDED.body
        (request,) = setting.standin.requests
        lines = request.decode().split("\r\n")
        assert lines[0] == "GET /pods HTTP/1.1"
        assert f"authorization: bearer {TOKEN}".lower() in [line.lower() for line in lines]
        assert "accept-encoding" not in request.decode().lower(), "nothing compressed is asked for"

    def test_a_chunked_answer_comes_through(self, serve: Serve) -> None:
        assert serve(closing(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).get() == b"abcde"

    def test_who_wants_no_more_is_given_no_more(self, serve: Serve) -> None:
        taken = 0

        def take(_: bytes) -> bool:
            nonlocal taken
            taken += 1
            return False

        setting = serve(sending(CHUNKED, then=b"4000\r\n" + b"x" * 0x4000 + b"\r\n"))
        setting.api().get(PODS, take, seconds=5, max_bytes=MEBIBYTE)
        assert taken == 1

    def test_an_ipv6_address_and_one_without_port_can_be_asked(self) -> None:
        calls = KubeletCalls(RealClock())
        KubeletApi(Access("https://[::1]", "", "", insecure=False), calls, RealClock())


class TestTrust:
    def test_a_certificate_the_authority_issued_for_this_address_is_believed(self, serve: Serve) -> None:
        assert serve().get()

    def test_a_certificate_it_issued_for_another_address_is_not(self, serve: Serve) -> None:
        setting = serve(issued=AUTHORITY.issue("10.0.0.7", "worker-3", "localhost"))
        assert f"was not issued for {HERE}" in setting.failure()

    def test_a_pinned_certificate_may_bear_any_name(self, serve: Serve) -> None:
        own = self_signed("worker-3")
        setting = serve(issued=own)
        setting.trust(own.cert)
        assert setting.get()

    def test_the_file_the_kubelet_writes_has_the_authority_it_forgot_beside_the_certificate(self, serve: Serve) -> None:
        own = AUTHORITY.issue("worker-3")
        setting = serve(issued=own)
        setting.trust(own.cert, AUTHORITY.pem)
        assert setting.get()

    def test_a_pinned_certificate_may_have_expired_as_the_kubelet_does_not_renew_its_own(self, serve: Serve) -> None:
        own = self_signed("worker-3", seconds=-HOUR)
        setting = serve(issued=own)
        setting.trust(self_signed("worker-3").cert, own.cert)
        assert setting.get()
        assert setting.standin.connections == 2, "it is looked at closely before the token is shown"
        assert len(setting.standin.requests) == 1

    def test_another_certificate_that_has_expired_is_believed_no_more_for_that(self, serve: Serve) -> None:
        setting = serve(issued=self_signed("worker-3", seconds=-HOUR))
        setting.trust(self_signed("worker-3", seconds=-HOUR).cert)
        assert "is not believed and was shown no token" in setting.failure()
        setting.standin.wait_for_end_of(1)
        assert b"".join(setting.standin.requests) == b""

    def test_a_pinned_certificate_is_followed_when_the_kubelet_renews_it(self, serve: Serve) -> None:
        old, new = self_signed("worker-3"), self_signed("worker-3")
        setting = serve(issued=old)
        pinned = Projected(setting.folder / "pki")
        pinned.swap(old, b"")
        api = setting.api(trust=pinned.cert)
        api.get(PODS, lambda _: True, seconds=5, max_bytes=MEBIBYTE)
        setting.standin.present(new)
        with pytest.raises(KubeletApiError, match="is not believed and was shown no token"):
            api.get(PODS, lambda _: True, seconds=5, max_bytes=MEBIBYTE)
        pinned.swap(new, b"")
        api.get(PODS, lambda _: True, seconds=5, max_bytes=MEBIBYTE)
        assert [TOKEN in request.decode() for request in setting.standin.requests] == [True, True]

    @pytest.mark.parametrize(
        "issued",
        [
            pytest.param(STRANGER.issue(HERE), id="another authority"),
            pytest.param(self_signed(HERE), id="self-signed"),
            pytest.param(AUTHORITY.issue("10.0.0.7"), id="another address"),
            pytest.param(AUTHORITY.issue(HERE, began=7200, seconds=-3600), id="expired"),
            pytest.param(AUTHORITY.issue(HERE, began=-3600), id="not valid yet"),
            pytest.param(AUTHORITY.issue(), id="no name"),
        ],
    )
    def test_no_byte_of_the_token_reaches_a_server_with_a_wrong_certificate(self, serve: Serve, issued: Issued) -> None:
        setting = serve(issued=issued)
        told = setting.failure()
        assert "is not believed and was shown no token" in told
        assert str(setting.trust_file) in told
        setting.standin.wait_for_end_of(1)
        assert b"".join(setting.standin.requests) == b""
        assert setting.counted("kubelet_api_requests_total")[PODS, "error"] == 1
        assert setting.counted("kubelet_api_apiserver_requests_estimate_total") == {
            ("token_review",): 0,
            ("subject_access_review",): 0,
        }

    def test_only_when_told_to_the_token_goes_to_anybody(self, serve: Serve) -> None:
        setting = serve(issued=self_signed("somebody"))
        assert setting.get(insecure=True) == RECORDED.body
        assert TOKEN in setting.standin.requests[0].decode()

    def test_a_server_without_tls_gets_nothing(self, serve: Serve) -> None:
        setting = serve()
        with socket.create_server((HERE, 0)) as plain:
            access = Access(f"https://{HERE}:{plain.getsockname()[1]}", str(setting.token_file), "/none", insecure=True)
            plain.settimeout(5)
            with pytest.raises(KubeletApiError, match="came to no TLS handshake within"):
                KubeletApi(access, setting.calls, RealClock()).get(PODS, bool, seconds=0.2, max_bytes=10)
            connection, _ = plain.accept()
            with connection:
                assert TOKEN.encode() not in connection.recv(65536)

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (None, "cannot be read: no such file or directory"),
            (b"", "holds no certificate in PEM"),
            (b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n", "holds no certificate in PEM"),
            (b"x" * (MEBIBYTE + 1), "is larger than 1024 KiB"),
        ],
    )
    def test_without_anything_to_compare_with_nobody_is_believed(
        self, serve: Serve, content: bytes | None, what: str
    ) -> None:
        setting = serve()
        setting.trust_file.unlink() if content is None else setting.trust_file.write_bytes(content)
        told = setting.failure()
        assert f"{setting.trust_file} (kubelet.ca_file) {what}" in told
        assert setting.standin.requests in ([], [b""])


class TestToken:
    def test_it_is_read_anew_when_the_kubelet_swaps_it(self, serve: Serve) -> None:
        setting = serve()
        projected = Projected(setting.folder / "serviceaccount")  # its certificate stands for a token here
        projected.swap(Issued(b"first", b""), b"")
        access = Access(setting.standin.url, str(projected.folder / CERT), str(setting.trust_file))
        api = KubeletApi(access, setting.calls, RealClock())
        api.get(PODS, lambda _: True, seconds=5, max_bytes=MEBIBYTE)
        projected.swap(Issued(b"second", b""), b"")
        api.get(PODS, lambda _: True, seconds=5, max_bytes=MEBIBYTE)
        shown = [request.partition(b"Bearer ")[2].partition(b"\r\n")[0] for request in setting.standin.requests]
        assert shown == [b"first", b"second"]

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (None, "cannot be read: no such file or directory"),
            ("", "holds no token"),
            ("two words", "holds no token"),
            ("a\r\nX-Forged: 1", "holds no token"),
            ("x" * 20_000, "is larger than 16 KiB"),
        ],
    )
    def test_a_file_without_a_token_is_told_and_nothing_is_asked(
        self, serve: Serve, content: str | None, what: str
    ) -> None:
        setting = serve()
        setting.token_file.unlink() if content is None else setting.token_file.write_text(content)
        assert f"{setting.token_file} (kubelet.token_file) {what}" in setting.failure()
        assert setting.standin.connections == 0

    def test_a_fifo_in_place_of_the_token_neither_holds_us_nor_is_read(self, serve: Serve) -> None:
        setting = serve()
        setting.token_file.unlink()
        os.mkfifo(setting.token_file)
        assert f"{setting.token_file} (kubelet.token_file) is no regular file" in setting.failure()
        assert setting.standin.connections == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "right"), [(PODS, "resources: [nodes/pods]"), (METRICS, "resources: [nodes/metrics]")]
    )
    def test_forbidden_names_the_missing_rule(self, serve: Serve, path: str, right: str) -> None:
        told = serve(replying(Reply(b"Forbidden", 403, "Forbidden"))).failure(path=path)
        assert f'lacks the rule {{apiGroups: [""], {right}, verbs: [get]}}' in told
        assert "nodes/proxy instead; do not grant that" in told

    def test_unauthorized_says_where_to_look(self, serve: Serve) -> None:
        told = serve(replying(Reply(b"Unauthorized", 401, "Unauthorized"))).failure()
        assert "401 Unauthorized: the kubelet does not know this token" in told
        assert "authentication.webhook.enabled" in told

    def test_a_redirect_is_not_followed(self, serve: Serve) -> None:
        setting = serve()
        where = (("Location", f"{setting.standin.url}/elsewhere"),)
        setting.standin.answer = replying(Reply(b"", 307, "Temporary Redirect", where))
        assert "is answered 307, a redirect, and none is followed" in setting.failure()
        assert setting.standin.connections == 1

    @pytest.mark.parametrize(("status", "what"), [(404, "404 Not Found"), (500, "500"), (503, "503")])
    def test_every_other_status_is_told(self, serve: Serve, status: int, what: str) -> None:
        setting = serve(replying(Reply(b"", status, "Odd")))
        assert f"GET {setting.standin.url}{PODS} is answered {what}" in setting.failure()
        assert setting.counted("kubelet_api_requests_total")[PODS, str(status)] == 1

    def test_nobody_listens(self, serve: Serve) -> None:
        setting = serve()
        with socket.socket() as taken:
            taken.bind((HERE, 0))
            access = Access(f"https://{HERE}:{taken.getsockname()[1]}", str(setting.token_file), "/none")
            with pytest.raises(KubeletApiError, match="Connection refused"):
                KubeletApi(access, setting.calls, RealClock()).get(PODS, bool, seconds=5, max_bytes=10)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


class TestBounds:
    @pytest.mark.parametrize(
        ("answer", "what"),
        [
            pytest.param(sending(b""), "was not answered", id="no byte"),
            pytest.param(sending(b"HTTP/1.1 200 OK\r\nX-En"), "was not answered", id="headers"),
            pytest.param(sending(HEAD + b"{"), "did not end", id="body"),
            pytest.param(sending(HEAD, then=b"x", every=0.01), "did not end", id="trickled body"),
            pytest.param(sending(b"HTTP/1.1 200 OK\r\nX: ", then=b"x", every=0.01), "was not answered", id="trickle"),
            pytest.param(sending(CHUNKED, then=b"1\r\nx\r\n", every=0.01), "did not end", id="chunks without end"),
            pytest.param(sending(b"", then=b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01), "not answered", id="1xx"),
        ],
    )
    def test_whatever_the_server_does_the_deadline_is_kept(self, serve: Serve, answer: Answer, what: str) -> None:
        setting = serve(answer)
        began = time.monotonic()
        with pytest.raises(KubeletApiTimeoutError, match=f"{what} within 0.3 s"):
            setting.get(seconds=0.3)
        assert time.monotonic() - began < 30
        counted = setting.counted("kubelet_api_requests_total")
        assert (counted[PODS, "error"], counted[PODS, "200"]) == (1, 0), "a 200 that did not end is none"

    def test_a_server_that_shakes_no_hands_is_left(self, serve: Serve) -> None:
        setting = serve()
        setting.standin.shakes_hands = False
        with pytest.raises(KubeletApiTimeoutError, match=r"came to no TLS handshake within 0\.2 s"):
            setting.get(seconds=0.2)

    def test_a_server_that_accepts_nobody_is_left(self, serve: Serve) -> None:
        setting = serve()
        with socket.create_server((HERE, 0), backlog=0) as full, ExitStack() as crowd:
            for _ in range(3):  # the kernel takes one more than the backlog says
                waiting = crowd.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            access = Access(f"https://{HERE}:{full.getsockname()[1]}", str(setting.token_file), "/none", insecure=True)
            with pytest.raises(KubeletApiTimeoutError, match=r"was not connected within 0\.2 s"):
                KubeletApi(access, setting.calls, RealClock()).get(PODS, bool, seconds=0.2, max_bytes=10)

    def test_time_in_which_we_stood_still_is_not_the_servers(self, serve: Serve) -> None:
        setting = serve()
        access = Access(setting.standin.url, str(setting.token_file), str(setting.trust_file))
        standing = ManualClock()  # no awake time passes, and no wall time runs out
        KubeletApi(access, setting.calls, standing).get(PODS, lambda _: True, seconds=0.001, max_bytes=MEBIBYTE)

    @pytest.mark.parametrize(
        "begin", [CHUNKED, b"HTTP/1.1 200 OK\r\nContent-Length: 26214400\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
    )
    def test_of_a_body_too_large_no_more_than_the_bound_is_read(self, serve: Serve, begin: bytes) -> None:
        piece = b"x" * 0x4000
        setting = serve(sending(begin, then=b"4000\r\n" + piece + b"\r\n" if begin is CHUNKED else piece))
        taken = 0

        def take(data: bytes) -> bool:
            nonlocal taken
            taken += len(data)
            return True

        with pytest.raises(KubeletApiError, match="with more than 2 MiB; the rest is not read"):
            setting.api().get(PODS, take, seconds=10, max_bytes=2 * MEBIBYTE)
        assert taken <= 2 * MEBIBYTE

    @pytest.mark.parametrize(
        ("wire", "what"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort", "has no whole answer in HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc", "has no whole answer in HTTP"),
            (CHUNKED + b"zz\r\nabc", "has no whole answer in HTTP"),
            (CHUNKED + b"3\r\nabc\r\n", "has no whole answer in HTTP"),
            (b"\x00\x01 not HTTP \r\n\r\n", "has no whole answer in HTTP"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000, "has no whole answer in HTTP"),
            (b"", "has no whole answer in HTTP"),
        ],
    )
    def test_a_server_that_lies_is_told(self, serve: Serve, wire: bytes, what: str) -> None:
        assert what in serve(closing(wire)).failure()

    def test_more_than_was_announced_is_not_read(self, serve: Serve) -> None:
        assert serve(closing(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdefgh")).get() == b"abc"
