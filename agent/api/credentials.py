"""Our certificate and the authorities of the callers', as they lie on disk now.

Certificates are renewed while we serve. A thread looks at the files once a second and takes up what has changed, if it
is whole: all files read from one state of their folders, key and certificate a pair, the authorities readable. While it
is not (a renewal in the middle, a mistake), the last that was good is kept, and the log says so once. A handshake never
waits for a disk.

Every connection gets a TLS context of its own, so that no session is ever resumed. A resumed session would let a caller
in whose certificate has expired meanwhile.
"""

import hashlib
import logging
import os
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from agent.api.endpoint import TlsFiles
from agent.api.reception import HTTP2

log = logging.getLogger("nodediag.api")

MAX_FILE_BYTES = 1 << 20
PERIOD_SECONDS = 1.0
"""Time between two looks at the files; each costs three stat(2)."""
ATTEMPTS = 3
"""How often files that change while they are read are read again at once."""


class CertificateError(Exception):
    """The files cannot be used. The text says which, and what is wrong with it."""


class SwappedError(Exception):
    """The files were exchanged while they were read."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What was read, all PEM."""

    cert: bytes
    key: bytes
    client_ca: bytes

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of our own certificate, as `openssl x509 -fingerprint -sha256` tells it but without colons."""
        first = self.cert[self.cert.index(b"-----BEGIN CERTIFICATE-----") :].partition(b"-----END")[0]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(f"{first.decode()}-----END CERTIFICATE-----")).hexdigest()


class CertificateWatch:
    """Keeps the certificates of these files; `load` once, then `start`. Then `context` serves each connection."""

    def __init__(self, files: TlsFiles, period_seconds: float = PERIOD_SECONDS) -> None:
        self._files = files
        self._period = period_seconds
        self._current: Certificates | None = None
        self._seen: object = None
        self._trouble = ""
        self._told = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> None:
        """Read the files now. Raises CertificateError."""
        self._seen = _state(self._files)
        try:
            self._current = read(self._files)
        except SwappedError as error:
            raise CertificateError(str(error)) from error

    def context(self) -> ssl.SSLContext:
        """Return a TLS context for one connection, with the certificates of now. To be called after `load`."""
        if self._current is None:
            raise CertificateError("no certificates are loaded")
        return _context(self._current)

    def start(self) -> None:
        """Follow the files until `stop`."""
        self._thread = threading.Thread(target=self._follow, name="api-certificates", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow them no more. The thread may be held by a disk that hangs, and is not waited for."""
        self._stop.set()

    def _follow(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self._look()
            except Exception:
                log.exception("the certificates could not be looked at; the ones before stay in use")

    def _look(self) -> None:
        """Take up what is new. What is wrong is told if it is still so at the next look: a renewal takes a moment."""
        state = _state(self._files)
        if state == self._seen:
            self._tell()
            return
        try:
            fresh = read(self._files)
        except SwappedError:
            return  # and look again
        except CertificateError as error:
            self._seen, self._trouble = state, str(error)
            return
        self._seen, self._trouble, self._told = state, "", ""
        if fresh != self._current:
            self._current = fresh
            log.info("new certificates are in use", extra={"sha256": fresh.fingerprint, "file": self._files.cert_file})

    def _tell(self) -> None:
        if self._trouble and self._trouble != self._told:
            self._told = self._trouble
            log.warning("new certificates cannot be used; the ones before stay in use", extra={"why": self._trouble})


def read(files: TlsFiles) -> Certificates:
    """Return what lies in the files, all of one moment. Raises CertificateError, SwappedError if they do not rest."""
    for _ in range(ATTEMPTS):
        before = _state(files)
        try:
            found = Certificates(_content(files.cert_file), _content(files.key_file), _content(files.client_ca_file))
        except CertificateError:
            if _state(files) == before:
                raise
            continue
        if _state(files) == before:
            _check(files, found)
            return found
    raise SwappedError(f"{files.cert_file} and its neighbours change all the time")


def _state(files: TlsFiles) -> tuple[object, ...]:
    """Return what changes when any file is written to, replaced, or reached by another way."""
    return tuple(_identity(getattr(files, each.name)) for each in fields(files))


def _identity(path: str) -> tuple[object, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116 - through every link, as the file is read
    except OSError as error:
        return (error.errno,)
    return (os.path.realpath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _content(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CertificateError(f"{path} is no file")
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise CertificateError(f"{path} is larger than 1 MiB; that is no certificate and no key")
    if not content.strip():
        raise CertificateError(f"{path} is empty")
    return content


def _check(files: TlsFiles, found: Certificates) -> None:
    """Make sure that just these bytes can be served with. Raises CertificateError."""
    _check_authorities(files.cert_file, found.cert)
    _check_authorities(files.client_ca_file, found.client_ca)
    try:
        _context(found)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise CertificateError(_pair_problem(files, found, error)) from error


def _context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([HTTP2])
    context.load_verify_locations(cadata=certificates.client_ca.decode("ascii"))
    with _as_file(certificates.cert) as cert, _as_file(certificates.key) as key:
        context.load_cert_chain(cert, key, password=lambda: b"")  # never ask on a terminal
    return context


def _check_authorities(path: str, pem: bytes) -> None:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem.decode("ascii"))
        good = context.cert_store_stats()["x509"] > 0
    except (ssl.SSLError, ValueError):
        good = False
    if not good:
        raise CertificateError(f"{path} holds no certificates in PEM form, or is only written in part")


def _pair_problem(files: TlsFiles, found: Certificates, error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if b"ENCRYPTED" in found.key:  # in the first lines of either form
        return f"the key in {files.key_file} is encrypted; the agent needs it without a password"
    if reason == "KEY_VALUES_MISMATCH":
        return f"the key in {files.key_file} is not that of the certificate in {files.cert_file}"
    words = str(reason).lower().replace("_", " ") if reason else "it is not in PEM form, or only written in part"
    return f"the key in {files.key_file} cannot be used with the certificate in {files.cert_file}: {words}"


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Show bytes as a file that is in memory alone: the ssl module reads files only, and must see what we have read."""
    descriptor = os.memfd_create("nodediag", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
