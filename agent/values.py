"""What single values may be. Each function returns what would be right, or None if the value is.

Apart from the settings, since the command line asks the same of its words, and a client has no use for the rest.
"""

import re
from urllib.parse import urlsplit

from agent.model import Action

GRPC_SOCKET = "unix:/run/nodediag/nodediag.sock"
"""Where the API is served, and asked, unless somebody says otherwise."""

MAX_NODE_NAME = 253
"""Characters of a Kubernetes name (RFC 1123 subdomain)."""
MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path: sun_path of unix(7) without its closing zero."""
CONTAINERD_NAMESPACE = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
"""containerd's pkg/identifiers; what else could lead out of the folder of the bundles."""

SPIFFE = "spiffe://"
MAX_SPIFFE_ID = 2048
SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)+")
"""The SPIFFE standard, section 2: a trust domain, and a path of segments that are neither empty nor dots."""
DNS_NAME = re.compile(r"([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""Labels of RFC 1035; the last begins with a letter, or it might be an address."""

MAX_LABELS = 16
LABEL = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""A label's name: a DNS name and a slash, or neither, and up to 63 characters (Kubernetes' IsQualifiedName)."""


def node_name_problem(name: str) -> str | None:
    """A node's name, or nothing."""
    if len(name) <= MAX_NODE_NAME and name.isprintable() and " " not in name:
        return None
    return f"must be a node's name: at most {MAX_NODE_NAME} characters without blanks"


def path_problem(path: str) -> str | None:
    """An absolute path."""
    return None if path.startswith("/") and path.isprintable() else "must be an absolute path, such as /run/containerd"


def socket_problem(path: str) -> str | None:
    """The absolute path of a Unix socket."""
    if len(path.encode()) > MAX_SOCKET_PATH:
        return f"must be at most {MAX_SOCKET_PATH} bytes: the path of a Unix socket cannot be longer"
    return path_problem(path)


def listen_problem(address: str) -> str | None:
    """host:port, with an IPv6 address in brackets."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", " ")
    good = bare and bare.isprintable() and " " not in bare
    if good and port.isascii() and port.isdigit() and int(port[:6]) < 65536:
        return None
    return "must be host:port, such as 127.0.0.1:9797 or [::1]:9797"


def socket_endpoint_problem(endpoint: str) -> str | None:
    """unix: and the absolute path of a Unix socket."""
    path = endpoint.removeprefix("unix:")
    if path == endpoint or path_problem(path):
        return "must be unix: and an absolute path, such as unix:/run/nodediag/nodediag.sock"
    return socket_problem(path)


def endpoint_problem(endpoint: str) -> str | None:
    """A place the API is served on: unix: and a path, or host:port."""
    if not endpoint or endpoint.startswith(("unix:", "/")) or listen_problem(endpoint):
        problem = socket_endpoint_problem(endpoint)
        return f"{problem}; or host:port, such as 10.0.0.7:9798" if problem and "bytes" not in problem else problem
    return None


def grpc_listen_problem(listen: str) -> str | None:
    """A Unix socket, host:port, or nothing."""
    return endpoint_problem(listen) if listen else None


def file_problem(path: str) -> str | None:
    """The absolute path of a file, or nothing."""
    return None if not path or (path.startswith("/") and path.isprintable()) else "must be the absolute path of a file"


def api_server_problem(url: str) -> str | None:
    """https://host or https://host:port, or nothing."""
    try:
        place = urlsplit(url)
        good = place.scheme == "https" and place.hostname and place.port != 0
    except ValueError:
        good = False
    rest = url.partition("//")[2].rstrip("/")
    if not url or (good and rest.isprintable() and not set(rest) & set(" /?#@")):
        return None
    return "must be https:// and a host, with a port or not, such as https://10.0.0.1:6443"


def identity_problem(identity: str) -> str | None:
    """A SPIFFE ID or a DNS name, as it stands in a certificate; compared as a whole, so wildcards would be no use."""
    if identity.startswith(SPIFFE):
        good = len(identity) <= MAX_SPIFFE_ID and SPIFFE_ID.fullmatch(identity) is not None
    else:
        good = len(identity) <= MAX_NODE_NAME and DNS_NAME.fullmatch(identity) is not None
    if good:
        return None
    if "*" in identity:
        return "must be one identity: wildcards are not matched, so name each caller"
    return (
        "must be a SPIFFE ID, such as spiffe://example.org/ns/ops/sa/controller, or a DNS name, such as "
        "controller.ops.svc, exactly as it stands in the caller's certificate"
    )


def actions_problem(actions: tuple[str, ...]) -> str | None:
    """Names of actions, each once."""
    known = [action.value for action in Action if action is not Action.NONE]
    if all(name in known for name in actions) and len(set(actions)) == len(actions):
        return None
    return f"must be names of actions, each once; there are: {', '.join(known)}"


def namespaces_problem(names: tuple[str, ...]) -> str | None:
    """At least one containerd namespace."""
    if names and all(CONTAINERD_NAMESPACE.fullmatch(name) for name in names):
        return None
    return "must be names of containerd namespaces, at least one, such as [k8s.io]"


def labels_problem(names: tuple[str, ...]) -> str | None:
    """Names of Kubernetes labels, each once."""
    if len(names) > MAX_LABELS:
        return f"must be at most {MAX_LABELS} names: each is kept for every pod"
    if all(LABEL.fullmatch(name) for name in names) and len(set(names)) == len(names):
        return None
    return "must be names of labels, each once, such as [app.kubernetes.io/name, team]"
