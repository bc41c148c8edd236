"""`$NODE_IP` in a setting: the node's own address, known to each pod and to no file that all of them share.

Kubernetes puts it into the environment (`status.hostIP` of the downward API). What an address needs to stand in
`host:port` or in a URL is added: brackets, if it is IPv6 (RFC 3986, section 3.2.2).
"""

from collections.abc import Mapping
from ipaddress import ip_address

NODE_IP = "$NODE_IP"
VARIABLE = NODE_IP.removeprefix("$")
MAX_SHOWN = 40
"""Characters of the variable's value that are repeated to the user."""


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """Return the text with the node's address in place of `$NODE_IP`.

    Raises ValueError, with what is wrong and what would be right, if the environment has no usable address.
    """
    return text.replace(NODE_IP, _address(environ)) if NODE_IP in text else text


def _address(environ: Mapping[str, str]) -> str:
    value = environ.get(VARIABLE, "")
    if not value:
        raise ValueError(
            f"has {NODE_IP}, and the environment has no {VARIABLE}: set it (in a pod's spec from the field "
            "status.hostIP), or write the address itself"
        )
    try:
        address = ip_address(value)
    except ValueError:
        address = None
    if address is None or address.is_unspecified or address.is_multicast or "%" in value:
        shown = value if len(value) <= MAX_SHOWN else f"{value[: MAX_SHOWN - 3]}..."
        raise ValueError(
            f"has {NODE_IP}, and {VARIABLE} in the environment is {shown!a}: it must be one address of this node, "
            "such as 10.0.0.7 or fd00::7"
        )
    return f"[{address}]" if address.version == 6 else str(address)
