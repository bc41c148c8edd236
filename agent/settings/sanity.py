"""Settings that are fine each for itself, but together would make a detector blind in silence."""

from collections.abc import Iterator

from agent.settings.tree import Settings


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, what is wrong and what would be right)."""
    detectors = settings.detectors
    shim, dns = detectors.containerd_shim, detectors.conntrack_dns
    kubelet, runtime = detectors.kubelet_healthz, detectors.container_runtime
    needs = (
        ("containerd_shim", shim.timeout_seconds, "ping_seconds", shim.ping_seconds),
        ("conntrack_dns", dns.timeout_seconds, "six times attempt_seconds", 6 * dns.attempt_seconds),
        ("kubelet_healthz", kubelet.timeout_seconds, "deadline_seconds", kubelet.deadline_seconds),
        ("container_runtime", runtime.timeout_seconds, "deadline_seconds", runtime.deadline_seconds),
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
    if settings.remediation.enabled and not settings.grpc.listen:
        yield "remediation.enabled", "must be false while grpc.listen is empty: nobody could ask for anything"
