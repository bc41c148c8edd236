"""A small controller: it watches one node, decides by a policy, and has the agent mend what was found."""

import argparse
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from agent.acts import RefusalReason
from agent.client import Client, ClientError
from agent.model import Action, Finding

POLICY = {"ShimUnresponsive": 15, "ShimWithoutContainers": 300, "ParentNotReaping": 600}  # reason: for how many seconds
SOON, LATER, DONE = 5.0, 300.0, 3600.0  # seconds of rest: unanswered; refused; done, and now a person should look
log = logging.getLogger("controller")


@contextmanager
def lease(path: str) -> Iterator[int]:
    """Wait for the lease, hold it, and yield its fencing token, which rises with each new holder."""
    # a lock and a counter in a file; in a cluster a coordination.k8s.io Lease, and its spec.leaseTransitions
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb+") as file:  # noqa: PTH123 - never emptied
        fcntl.flock(file, fcntl.LOCK_EX)
        token = int(os.pread(file.fileno(), 20, 0) or 0) + 1
        os.pwrite(file.fileno(), b"%020d" % token, 0)
        os.fsync(file)
        yield token


class Controller:
    """Follows one node and asks for one remediation at a time."""

    def __init__(self, client: Client, token: int) -> None:
        self._client, self._token = client, token
        self.found: dict[object, Finding] = {}  # empty while the agent does not answer: nothing is decided blindly
        self._since: dict[object, float] = {}
        self._not_before: dict[object, float] = {}
        self._requests: dict[object, str] = {}  # those without an answer

    def follow(self) -> None:
        """Keep up with what is found for ever, over restarts of the agent too."""
        while True:
            try:
                for _ in self._client.watch():
                    conditions = self._client.get_node_report().conditions
                    self.found = {each.finding.key: each.finding for one in conditions for each in one.findings}
            except ClientError as error:
                log.warning("the watch ended and is begun again: %s", error)
            self.found = {}
            time.sleep(SOON)

    def step(self, now: float) -> None:
        """Ask for one remediation at most, the first whose time has come. `now` in seconds, monotonic."""
        found = self.found
        self._since = {key: self._since.get(key, now) for key in found}
        self._not_before = {key: moment for key, moment in self._not_before.items() if moment > now}
        for key, finding in found.items():
            ripe = now - self._since[key] >= POLICY.get(finding.reason, float("inf"))
            if ripe and key not in self._not_before and finding.recommended_action is not Action.NONE:
                self._not_before[key] = now + self._mend(key, finding)
                return

    def _mend(self, key: object, finding: Finding) -> float:
        """Ask for what the finding recommends, and return for how many seconds it is then left alone."""
        action, name = finding.recommended_action, self._requests.setdefault(key, str(uuid4()))
        log.info("request %s: %s: %s", name, action, finding.message)
        try:
            done = self._client.remediate(action, finding.target, request_id=name, fencing_token=self._token)
        except ClientError as error:
            log.warning("request %s: %s", name, error)
            if error.refusal and error.refusal.reason is RefusalReason.STALE_FENCING_TOKEN:
                raise SystemExit("the lease is lost: another controller acts") from error
            if error.refusal and error.refusal.retry_seconds:
                return error.refusal.retry_seconds
            if error.code.name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                return SOON  # it may have been done: sent again with the same id, it is not done twice
            del self._requests[key]
            return LATER
        log.info("request %s: %s: %s", name, done.outcome, done.message)
        del self._requests[key]
        return DONE


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Watches one node and has its agent mend what was found.")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--lease", required=True)
    arguments = parser.parse_args()
    with lease(arguments.lease) as token, Client(arguments.endpoint) as client:
        controller = Controller(client, token)
        threading.Thread(target=controller.follow, daemon=True).start()
        while True:
            controller.step(time.monotonic())
            time.sleep(1)
