"""What there is to set, with its defaults and meanings."""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from agent.detectors.conntrack_dns import ConntrackDnsSettings
from agent.detectors.container_runtime import ContainerRuntimeSettings
from agent.detectors.containerd_shim import ContainerdShimSettings
from agent.detectors.defunct_processes import DefunctProcessesSettings
from agent.detectors.kubelet_healthz import KubeletHealthzSettings
from agent.detectors.kubelet_pleg import KubeletPlegSettings
from agent.host.dns_conversation import name_problem
from agent.host.dns_servers import servers_problem
from agent.host.kubelet import api_url_problem, url_problem
from agent.schema import Rule, rule_of, setting, table
from agent.values import (
    GRPC_SOCKET,
    actions_problem,
    api_server_problem,
    file_problem,
    grpc_listen_problem,
    identity_problem,
    labels_problem,
    listen_problem,
    namespaces_problem,
    node_name_problem,
    path_problem,
    socket_problem,
)


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Where the node's own files are seen from here."""

    proc: str = setting("/proc", "the node's procfs, of the initial pid namespace", check=path_problem)
    sys: str = setting("/sys", "the node's sysfs, for the cgroups", check=path_problem)
    dev_kmsg: str = setting("/dev/kmsg", "the kernel log; not read in this version", check=path_problem)
    state_dir: str = setting(
        "/var/lib/nodediag",
        "what must outlive a restart: the ledger of remediations, their evidence, and the file named paused that stops "
        "them all",
        check=path_problem,
    )
    dbus_socket: str = setting(
        "/run/dbus/system_bus_socket",
        "the node's system bus, to have systemd restart a service; where it is not, services are ended by signals and "
        "their supervisor starts them again",
        check=socket_problem,
    )


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The page a Prometheus scrapes and the kubelet's probes ask."""

    listen: str = setting(
        "127.0.0.1:9797",
        "host:port of /metrics, /livez, /readyz and the status page; $NODE_IP as the host is the address in that "
        "environment variable",
        check=listen_problem,
        node_ip=True,
    )


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Certificates of the gRPC API over TCP, PEM; taken up within a second when they change on disk."""

    cert_file: str = setting("", "our certificate, and those between it and its authority", check=file_problem)
    key_file: str = setting("", "its private key, not encrypted", check=file_problem)
    client_ca_file: str = setting("", "the authorities that sign the callers' certificates", check=file_problem)


@dataclass(frozen=True, slots=True)
class CallerSettings:
    """One caller of the gRPC API over TCP."""

    identity: str = setting(
        "", "SPIFFE ID or DNS name in the caller's certificate, compared as a whole", check=identity_problem
    )
    actions: tuple[str, ...] = setting(
        (), "the actions this caller may ask for; none: it may read, and mend nothing", check=actions_problem
    )


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """The API for controllers."""

    listen: str = setting(
        GRPC_SOCKET,
        "unix:PATH, for root and the agent's own user; or host:port ($NODE_IP:9798 too), for the callers below; empty: "
        "no API is served. "
        "If set here, it must be possible to serve there; where it is only the default, the agent does without if it "
        "may not write there",
        check=grpc_listen_problem,
        presence=True,
        node_ip=True,
    )
    tls: TlsSettings = table(TlsSettings, "certificates on both sides, for host:port")
    callers: tuple[CallerSettings, ...] = setting((), "who may call over TCP, and for which actions")


@dataclass(frozen=True, slots=True)
class ContainerdSettings:
    """Where containerd lives."""

    address: str = setting(
        "/run/containerd/containerd.sock",
        "containerd's socket; if set here, something is expected to answer there",
        check=socket_problem,
        presence=True,
    )
    state_dir: str = setting(
        "/run/containerd",
        "containerd's state directory, where the bundles are; if set here, it is expected to exist",
        check=path_problem,
        presence=True,
    )
    namespaces: tuple[str, ...] = setting(
        ("k8s.io",), "containerd namespaces to watch; Kubernetes uses k8s.io", check=namespaces_problem
    )


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """How the kubelet is asked."""

    healthz_url: str = setting(
        "http://127.0.0.1:10248/healthz",
        "the kubelet's healthz; if set here it is expected to answer even where no trace of a kubelet is found",
        check=url_problem,
        presence=True,
    )
    api_url: str = setting(
        "",
        "this node's kubelet's own API, such as https://$NODE_IP:10250, for owner, QoS class and labels of a finding's "
        "pod, and for PLEG; empty: it is not asked",
        check=api_url_problem,
        node_ip=True,
    )
    token_file: str = setting(
        "",
        "the token shown there, read anew for every request; never shown to a server not verified",
        check=file_problem,
    )
    ca_file: str = setting(
        "",
        "what its certificate is compared with, PEM: that very certificate, expired or not, or the authorities that "
        "signed it for the address in api_url; empty: /var/lib/kubelet/pki/kubelet.crt",
        check=file_problem,
    )
    insecure_skip_verify: bool = setting(
        default=False,
        meaning="whether any certificate will do; then whoever holds the port gets the token",
    )
    pod_labels: tuple[str, ...] = setting(
        (),
        "names of the labels that are told of a finding's pod, such as [app.kubernetes.io/name]",
        check=labels_problem,
    )


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """What the active DNS probe asks, and whom."""

    servers: tuple[str, ...] = setting(
        (), "addresses, IPv4 or IPv6, with port or not; empty: those of the host's resolv.conf", check=servers_problem
    )
    name: str = setting(
        "kubernetes.default.svc.cluster.local",
        "the name asked for; any answer counts, also NXDOMAIN",
        check=name_problem,
    )
    resolv_conf: str = setting(
        "/etc/resolv.conf", "where the servers are read from if none are set", check=path_problem
    )


@dataclass(frozen=True, slots=True)
class DetectorsSettings:
    """One table per detector."""

    containerd_shim: ContainerdShimSettings = table(
        ContainerdShimSettings, "shims that do not answer, or are left over"
    )
    defunct_processes: DefunctProcessesSettings = table(
        DefunctProcessesSettings, "zombies, and the parents that do not reap them"
    )
    conntrack_dns: ConntrackDnsSettings = table(ConntrackDnsSettings, "packets lost in conntrack, and DNS itself")
    kubelet_healthz: KubeletHealthzSettings = table(KubeletHealthzSettings, "how the kubelet answers")
    container_runtime: ContainerRuntimeSettings = table(ContainerRuntimeSettings, "how containerd itself answers")
    kubelet_pleg: KubeletPlegSettings = table(
        KubeletPlegSettings, "whether the kubelet keeps up with its containers; only where kubelet.api_url is set"
    )


@dataclass(frozen=True, slots=True)
class ActionSettings:
    """What every action can be told."""

    enabled: bool = setting(default=True, meaning="whether this action may be asked for")
    cooldown_seconds: float = setting(60.0, "rest after each time it was performed", minimum=0, maximum=86400)
    max_per_hour: int = setting(6, "how often it is performed in an hour at most", minimum=0, maximum=3600)


@dataclass(frozen=True, slots=True)
class ActionsSettings:
    """One table per action, by the action's name (agent.model.Action). Cool-downs follow GKE's practice."""

    KillShim: ActionSettings = table(ActionSettings, "kill a hung shim")
    ThawCgroup: ActionSettings = table(ActionSettings, "thaw a frozen container")
    SignalParent: ActionSettings = table(ActionSettings, "remind a parent of its zombies (SIGCHLD)")
    KillParent: ActionSettings = table(ActionSettings, "kill a parent that does not reap")
    RestartKubelet: ActionSettings = table(ActionSettings, "restart the kubelet")
    RestartContainerd: ActionSettings = table(lambda: ActionSettings(cooldown_seconds=120.0), "restart containerd")
    DeleteConntrackFlows: ActionSettings = table(ActionSettings, "delete DNS flows without an answer")


@dataclass(frozen=True, slots=True)
class RemediationSettings:
    """What may be mended on request."""

    enabled: bool = setting(default=False, meaning="whether anything may be mended at all")
    dry_run: bool = setting(default=True, meaning="whether every remediation stops before its last step")
    max_per_hour: int = setting(
        12, "how often anything is performed in an hour at most, all actions together", minimum=0, maximum=3600
    )
    actions: ActionsSettings = table(ActionsSettings, "the actions and their limits")


@dataclass(frozen=True, slots=True)
class NodeConditionsSettings:
    """What is told to the API server. The three last are for outside of a pod."""

    enabled: bool = setting(
        default=False,
        meaning="whether the conditions are written into this node's status in the Kubernetes API; nothing is asked of "
        "the API server otherwise",
    )
    heartbeat_seconds: float = setting(
        300.0, "conditions that do not change are written again after 80 to 100 % of this", minimum=60, maximum=3600
    )
    min_interval_seconds: float = setting(
        10.0, "pause between two writes; a change is written within this time of its own", minimum=1, maximum=300
    )
    events: bool = setting(default=True, meaning="whether each finding is told in an Event about this node, too")
    server: str = setting("", "the API server; empty: $KUBERNETES_SERVICE_HOST and _PORT", check=api_server_problem)
    ca_file: str = setting("", "who signed its certificate; empty: the service account's ca.crt", check=file_problem)
    token_file: str = setting("", "the token shown to it; empty: the service account's token", check=file_problem)


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file."""

    node_name: str = setting("", "this node's name; else $NODE_NAME, else the hostname", check=node_name_problem)
    host: HostSettings = table(HostSettings, "where the node is seen from here")
    http: HttpSettings = table(HttpSettings, "metrics, probes and status page")
    grpc: GrpcSettings = table(GrpcSettings, "the API for controllers")
    containerd: ContainerdSettings = table(ContainerdSettings, "containerd on this node")
    kubelet: KubeletSettings = table(KubeletSettings, "the kubelet on this node")
    dns: DnsSettings = table(DnsSettings, "the DNS probe")
    detectors: DetectorsSettings = table(DetectorsSettings, "the watches")
    remediation: RemediationSettings = table(RemediationSettings, "what may be mended on request")
    node_conditions: NodeConditionsSettings = table(NodeConditionsSettings, "what the API server is told")


def node_name(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """Return the node's name: the setting, else $NODE_NAME, else the hostname."""
    return settings.node_name or environ.get("NODE_NAME", "") or socket.gethostname()


def describe(settings: Any, path: str = "") -> Iterator[tuple[str, Any, Rule]]:  # noqa: ANN401 - any table
    """Yield (dotted path, value, rule) of every setting below a table, tables included."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        dotted = f"{path}.{item.name}" if path else item.name
        yield dotted, value, rule_of(item.metadata)
        if is_dataclass(value):
            yield from describe(value, dotted)
