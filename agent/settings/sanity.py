"""Settings that are fine each for itself, but together would do something else in silence than was meant."""

from collections.abc import Iterator

from agent.settings.tree import GrpcSettings, KubeletSettings, Settings


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, what is wrong and what would be right)."""
    yield from _blind_detectors(settings)
    yield from _ways_in(settings.grpc)
    yield from _kubelet_api(settings.kubelet)
    told = settings.node_conditions
    if told.min_interval_seconds >= told.heartbeat_seconds:
        must = f"must be less than heartbeat_seconds ({told.heartbeat_seconds:g}), which it would delay"
        yield "node_conditions.min_interval_seconds", f"{must}; it is {told.min_interval_seconds:g}"
    if settings.remediation.enabled and not settings.grpc.listen:
        yield "remediation.enabled", "must be false while grpc.listen is empty: nobody could ask for anything"


def _blind_detectors(settings: Settings) -> Iterator[tuple[str, str]]:
    detectors = settings.detectors
    shim, dns = detectors.containerd_shim, detectors.conntrack_dns
    kubelet, runtime = detectors.kubelet_healthz, detectors.container_runtime
    pleg = detectors.kubelet_pleg
    needs = (
        ("containerd_shim", shim.timeout_seconds, "ping_seconds", shim.ping_seconds),
        ("conntrack_dns", dns.timeout_seconds, "six times attempt_seconds", 6 * dns.attempt_seconds),
        ("kubelet_healthz", kubelet.timeout_seconds, "deadline_seconds", kubelet.deadline_seconds),
        ("container_runtime", runtime.timeout_seconds, "deadline_seconds", runtime.deadline_seconds),
        ("kubelet_pleg", pleg.timeout_seconds, "deadline_seconds", pleg.deadline_seconds),
    )
    for name, limit, what, seconds in needs:
        if limit <= seconds:
            must = f"must be more than {what} ({seconds:g}), or a look that still waits for its answer counts as stuck"
            yield f"detectors.{name}.timeout_seconds", f"{must}; it is {limit:g}"
    if kubelet.slow_seconds >= kubelet.deadline_seconds:
        must = f"must be less than deadline_seconds ({kubelet.deadline_seconds:g}), or no answer ever counts as slow"
        yield "detectors.kubelet_healthz.slow_seconds", f"{must}; it is {kubelet.slow_seconds:g}"
    if dns.min_lost_pairs > dns.repeat_pairs + 1:
        must = f"must be at most repeat_pairs + 1 ({dns.repeat_pairs + 1}), or a race can never show"
        yield "detectors.conntrack_dns.min_lost_pairs", f"{must}; it is {dns.min_lost_pairs}"


def _ways_in(grpc: GrpcSettings) -> Iterator[tuple[str, str]]:
    """Over TCP nobody comes in without certificates and a list of callers; on a Unix socket neither would count."""
    files = [(name, getattr(grpc.tls, name)) for name in ("cert_file", "key_file", "client_ca_file")]
    if not grpc.listen or grpc.listen.startswith("unix:"):
        where = "on a Unix socket (grpc.listen)" if grpc.listen else "where no API is served (grpc.listen)"
        given = [f"tls.{name}" for name, value in files if value] + (["callers"] if grpc.callers else [])
        for path in given:
            yield f"grpc.{path}", f"has no effect {where}: leave it out, or set grpc.listen to host:port"
        return
    for name, value in files:
        if not value:
            yield f"grpc.tls.{name}", f"must be set to serve gRPC over TCP (grpc.listen is {grpc.listen})"
    if not grpc.callers:
        yield "grpc.callers", "must name at least one caller to serve gRPC over TCP, or nobody could call"
    yield from _callers(grpc)


def _kubelet_api(kubelet: KubeletSettings) -> Iterator[tuple[str, str]]:
    """What is set for the kubelet's API must take effect, above all what is to make it safe."""
    if not kubelet.api_url:
        for name in ("token_file", "ca_file", "insecure_skip_verify", "pod_labels"):
            if getattr(kubelet, name):
                yield f"kubelet.{name}", "has no effect while kubelet.api_url is empty: leave it out, or set that"
        return
    if not kubelet.token_file:
        yield "kubelet.token_file", "must be set to ask the kubelet's API (kubelet.api_url): nobody is let in without"
    if kubelet.insecure_skip_verify and kubelet.ca_file:
        yield "kubelet.ca_file", "has no effect while kubelet.insecure_skip_verify is true: leave one of them out"


def _callers(grpc: GrpcSettings) -> Iterator[tuple[str, str]]:
    first: dict[str, int] = {}
    for index, caller in enumerate(grpc.callers):
        path = f"grpc.callers[{index}].identity"
        if not caller.identity:
            yield path, "must be set: a SPIFFE ID or DNS name in the caller's certificate"
        elif caller.identity in first:
            yield path, f"is that of grpc.callers[{first[caller.identity]}] too; name each caller once"
        first.setdefault(caller.identity, index)
