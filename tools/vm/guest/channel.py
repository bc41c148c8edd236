"""The guest's end of the command channel: a line of JSON in, a line of JSON back, over a virtio-serial port.

A request is ``{"command": ..., "timeout": ...}``, a reply ``{"code": ..., "output": ..., "seconds": ...}``.
Code 124 means that the command was ended at its timeout, as with timeout(1).
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time

PORT = "/dev/virtio-ports/channel"
TIMED_OUT = 124
NO_PEER_PAUSE = 0.05


def main() -> None:
    """Serve commands until the guest ends."""
    port = os.open(PORT, os.O_RDWR)
    send(port, {"ready": True})
    received = b""
    while True:
        chunk = os.read(port, 65536)
        if not chunk:  # the host has closed its end, for which there is no event
            time.sleep(NO_PEER_PAUSE)
        *lines, received = (received + chunk).split(b"\n")
        for line in lines:
            send(port, run(**json.loads(line)))


def run(command: str, timeout: float) -> dict[str, object]:
    """Run a command in a session of its own.

    Its output goes to a file: a pipe would be kept open by a child in the background.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - running what the tests send is what this is for
            ["/bin/bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = TIMED_OUT
        output.seek(0)
        text = output.read().decode(errors="replace")
    return {"code": code, "output": text, "seconds": round(time.monotonic() - began, 3)}


def send(port: int, message: dict[str, object]) -> None:
    """Write one line to the host, however little of it the port takes at a time."""
    left = json.dumps(message).encode() + b"\n"
    while left:
        left = left[os.write(port, left) :]


main()
