"""A netfilter queue by raw netlink: packets are held in the kernel until they are released together."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from types import TracebackType
from typing import Self

from .netns import Node

_NETLINK_NETFILTER = 12
_QUEUE = 3 << 8
_PACKET, _CONFIG, _RELEASE_BATCH = _QUEUE | 0, _QUEUE | 2, _QUEUE | 3
_REQUEST, _REQUEST_ACK = 0x1, 0x5
_ERROR = 2
_CFG_CMD, _CFG_PARAMS = 1, 2
_BIND = 1
_COPY_META = 1
_PACKET_HEADER, _VERDICT_HEADER = 1, 2
_ACCEPT = 1

_NLMSG = struct.Struct("=IHHII")
_NFGEN = struct.Struct(">BBH")
_ATTR = struct.Struct("=HH")


class PacketQueue:
    """One queue of a node's network, as a context manager.

    Packets come into it by an iptables rule with ``-j NFQUEUE``.  What is still
    held when the queue is closed is dropped by the kernel.
    """

    def __init__(self, node: Node, number: int) -> None:
        self.number = number
        self._netlink = node.make_socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._held: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._netlink.bind((0, 0))
            self._ask(_CFG_CMD, struct.pack(">BxH", _BIND, socket.AF_INET))
            self._ask(_CFG_PARAMS, struct.pack(">IB", 0, _COPY_META))
        except BaseException:
            self._netlink.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._netlink.close()

    def hold(self, count: int, timeout: float = 10.0) -> None:
        """Wait until that many packets are held."""
        deadline = time.monotonic() + timeout
        while len(self._held) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._netlink], [], [], left)[0]:
                raise TimeoutError(f"{len(self._held)} of {count} packets came into queue {self.number}")
            self._receive()

    def release(self) -> None:
        """Let all held packets go on their way, in the order in which they came."""
        if self._held:
            self._send(_RELEASE_BATCH, _VERDICT_HEADER, struct.pack(">II", _ACCEPT, max(self._held)), _REQUEST)
            self._held.clear()

    def _ask(self, attribute: int, value: bytes) -> None:
        self._send(_CONFIG, attribute, value, _REQUEST_ACK)
        reply = self._netlink.recv(65536)
        _, kind, *_ = _NLMSG.unpack_from(reply)
        (code,) = struct.unpack_from("=i", reply, _NLMSG.size)
        if kind != _ERROR or code:
            raise OSError(-code, f"netfilter queue {self.number}: {os.strerror(-code)}")

    def _send(self, kind: int, attribute: int, value: bytes, flags: int) -> None:
        attributes = _ATTR.pack(_ATTR.size + len(value), attribute) + value + b"\0" * (-len(value) % 4)
        body = _NFGEN.pack(socket.AF_UNSPEC, 0, self.number) + attributes
        self._netlink.send(_NLMSG.pack(_NLMSG.size + len(body), kind, flags, 0, 0) + body)

    def _receive(self) -> None:
        data = self._netlink.recv(1 << 20)
        while len(data) >= _NLMSG.size:
            length, kind, *_ = _NLMSG.unpack_from(data)
            if kind == _PACKET:
                self._held.append(_packet_id(data[_NLMSG.size + _NFGEN.size : length]))
            data = data[(length + 3) & ~3 :]


def _packet_id(attributes: bytes) -> int:
    while attributes:
        length, kind = _ATTR.unpack_from(attributes)
        if kind == _PACKET_HEADER:
            (number,) = struct.unpack_from(">I", attributes, _ATTR.size)
            return int(number)
        attributes = attributes[(length + 3) & ~3 :]
    raise ValueError("a queued packet without a header")
