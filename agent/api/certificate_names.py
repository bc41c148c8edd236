r"""The names in a certificate: its subject alternative names (RFC 5280, section 4.2.1.6), read from the DER itself.

Read as they are: a library that takes them for C strings cuts them at the first zero byte, so that a certificate for
`controller\0.example.org`, which an authority may sign without a thought, would pass for `controller`; and one that
mixes all kinds takes an e-mail address or an IP address for a DNS name. grpc does both. The certificate was verified
before; what cannot be parsed is refused anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass

SUBJECT_ALT_NAME = bytes.fromhex("551d11")  # 2.5.29.17
SEQUENCE, OBJECT_ID, OCTETS, EXTENSIONS = 0x30, 0x06, 0x04, 0xA3
DNS_NAME, URI = 0x82, 0x86


@dataclass(frozen=True, slots=True)
class CertificateName:
    """One alternative name: the kind as tagged in the certificate, and its bytes."""

    kind: int
    value: bytes

    @property
    def identity(self) -> bytes | None:
        """What may be compared with a configured identity: a URI or a DNS name, nothing else."""
        return self.value if self.kind in {DNS_NAME, URI} else None


def alternative_names(der: bytes) -> tuple[CertificateName, ...]:
    """Return all alternative names of a certificate, in its order. Raises ValueError if it cannot be read."""
    try:
        return tuple(_names(der))
    except IndexError:
        raise ValueError("the certificate ends in the middle") from None


def _names(der: bytes) -> Iterator[CertificateName]:
    certificate = _only(der, SEQUENCE)
    _, signed = [*_elements(certificate)][0]  # noqa: RUF015 - without one, an IndexError
    for tag, extensions in _elements(signed):
        if tag == EXTENSIONS:
            for _, extension in _elements(_only(extensions, SEQUENCE)):
                yield from _names_of(list(_elements(extension)))


def _names_of(extension: list[tuple[int, bytes]]) -> Iterator[CertificateName]:
    """An extension is its id, perhaps whether it is critical, and its value in octets."""
    if extension[0] == (OBJECT_ID, SUBJECT_ALT_NAME) and extension[-1][0] == OCTETS:
        for kind, value in _elements(_only(extension[-1][1], SEQUENCE)):
            yield CertificateName(kind, value)


def _only(der: bytes, expected: int) -> bytes:
    ((tag, value),) = _elements(der)
    if tag != expected:
        raise ValueError(f"a certificate should have {expected:#x} where this one has {tag:#x}")
    return value


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each element (X.690): one byte of tag, the length, the value."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size >= 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(der[at : at + count], "big"), at + count
        if at + size > len(der):
            raise ValueError("the certificate ends in the middle")
        yield tag, der[at : at + size]
        at += size
