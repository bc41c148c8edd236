"""Holds a process by a pidfd, so that what is signalled is what was looked at, whatever becomes of its pid.

pidfd_open(2) takes a pid, which may be reused up to that moment; so the start time is compared after it is open. From
then on a signal reaches this very process or nobody (pidfd_send_signal(2)).
"""

import errno
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from agent.acts import RefusalReason, refused
from agent.host.procfs import Process, Procfs
from agent.host.rights import Rights
from agent.model import ProcessId
from agent.remediation.remedy import ActError

OWN_PIDS = frozenset({1, os.getpid()})
"""Never held, whoever asks: the gate has refused them before."""


class Grip:
    """One process, held for as long as it takes."""

    def __init__(self, process: ProcessId, pidfd: int, uid: int | None = None, rights: Rights | None = None) -> None:
        self.process = process
        self._pidfd = pidfd
        self._uid = uid
        self._rights = rights or Rights()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process has ended. Raises ActError if that is not permitted."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:
            what = f"process {self.process.pid} runs as uid {self._uid}"
            fault = self._rights.signal(what, self._uid)
            raise ActError(f"{number.name} may not be sent to process {self.process.pid}: {fault}") from None

    def ended(self, within_seconds: float) -> bool:
        """Wait until the process has ended (it may still be a zombie), for so long at most."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(within_seconds * 1000))


@contextmanager
def held(process: ProcessId, procfs: Procfs) -> Iterator[Grip]:
    """Hold a process. Raises RefusedError if it is gone, is another one by now, or is not ours to touch."""
    if process.pid in OWN_PIDS or process.pid <= 1:
        raise refused(RefusalReason.PROTECTED_PROCESS, f"process {process.pid} is never touched")
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENOENT}:  # the latter two: a thread (Linux 6.9: ENOENT)
            raise refused(RefusalReason.TARGET_GONE, f"process {process.pid} is gone") from None
        why = f"process {process.pid} cannot be held: {error.strerror}"
        raise refused(RefusalReason.CANNOT_SEE, why) from None
    try:
        same_process(process, procfs)
        yield Grip(process, pidfd, procfs.uid(process.pid))
    finally:
        os.close(pidfd)


def same_process(process: ProcessId, procfs: Procfs) -> Process:
    """Return the living process behind an identity. Raises RefusedError if it is gone or is another one by now."""
    now = procfs.process(process.pid)
    if now is None or procfs.has_ended(now):
        raise refused(RefusalReason.TARGET_GONE, f"process {process.pid} is gone")
    if now.id != process:
        raise refused(
            RefusalReason.TARGET_CHANGED,
            f"pid {process.pid} is another process by now: it was started at tick {now.start_time}, not "
            f"{process.start_time}. Ask for a new report",
        )
    return now
