"""Makes certificate authorities and certificates, and lays them out on disk as the kubelet does.

Keys are on the curve P-256: they are made in a millisecond. Nothing here is a secret.
"""

from __future__ import annotations

import ipaddress
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = 3600.0
CERT = "tls.crt"
KEY = "tls.key"
CA = "ca.crt"

Name: TypeAlias = x509.GeneralName


@dataclass(frozen=True)
class Issued:
    """A certificate with its private key, both PEM."""

    cert: bytes
    key: bytes

    @property
    def serial(self) -> int:
        """Return the certificate's serial number."""
        return x509.load_pem_x509_certificate(self.cert).serial_number

    def write(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write both into a folder and return their paths: certificate, key."""
        paths = folder / f"{stem}.crt", folder / f"{stem}.key"
        paths[0].write_bytes(self.cert)
        paths[1].write_bytes(self.key)
        return paths


class Authority:
    """A certificate authority that signs what it is told to."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=24))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: Name | str,
        seconds: float = HOUR,
        began: float = 60.0,
        common_name: str = "a common name is no identity",
        organization: str = "",
    ) -> Issued:
        """Sign a certificate for these names (see `name`), valid since `began` seconds ago and for `seconds` more.

        Kubernetes' own parts take a client's user name from the common name, and its groups from the organization.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        subject += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
        alternatives = [each if isinstance(each, x509.GeneralName) else name(each) for each in names]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=began))
            .not_valid_after(now + timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Issued(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def self_signed(*names: str, seconds: float = HOUR) -> Issued:
    """Return a certificate that nobody but itself vouches for, valid since two hours ago and for `seconds` more."""
    key = ec.generate_private_key(ec.SECP256R1())
    now, whose = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "worker-3@1795331299")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(whose)
        .issuer_name(whose)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now + timedelta(seconds=seconds))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([name(each) for each in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def name(text: str) -> Name:
    """Return what stands in a certificate for a URI, an address or a DNS name."""
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


class Projected:
    """A folder laid out as the kubelet does: the files are links through `..data`, and that is swapped in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._generation = 0
        folder.mkdir(parents=True, exist_ok=True)
        for each in (CERT, KEY, CA):
            (folder / each).symlink_to(f"..data/{each}")

    @property
    def cert(self) -> Path:
        """Where the certificate is seen."""
        return self.folder / CERT

    @property
    def key(self) -> Path:
        """Where its key is seen."""
        return self.folder / KEY

    @property
    def ca(self) -> Path:
        """Where the authorities of the callers are seen."""
        return self.folder / CA

    def swap(self, issued: Issued, ca: bytes) -> None:
        """Put a new generation in place of the one before, which is removed at once as the kubelet does."""
        self._generation += 1
        fresh = self.folder / f"..generation-{self._generation}"
        fresh.mkdir()
        (fresh / CERT).write_bytes(issued.cert)
        (fresh / KEY).write_bytes(issued.key)
        (fresh / CA).write_bytes(ca)
        data = self.folder / "..data"
        before = data.readlink() if data.is_symlink() else None
        link = self.folder / "..data_tmp"
        link.symlink_to(fresh.name)
        link.replace(data)
        if before is not None:
            shutil.rmtree(self.folder / before)
