"""`nodediag remediate`: have the running agent mend one thing, after it was shown and agreed to."""

import argparse
import difflib
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from agent.acts import MAX_REASON, ActionStatus, Outcome, Remediation, RemediationStatus, Request
from agent.cli.arguments import add_endpoint, client_of
from agent.cli.connection import complain
from agent.cli.exits import EXIT_NON_OK, EXIT_OK, EXIT_UNKNOWN
from agent.cli.output import add_format
from agent.cli.request_ids import request_id
from agent.cli.saying import say, say_json
from agent.cli.targets import NoSingleTargetError, could_be, look_up
from agent.exporters.remediation_json import refused_json, remediation_json
from agent.exporters.remediation_text import plan_lines, refusal_lines, remediation_lines, target_words
from agent.model import Action
from agent.printable import printable

if TYPE_CHECKING:
    from agent.client import Client, ClientError

NAME = "remediate"
HELP = "have the running agent mend one thing that was found, after showing it and asking"
INTERRUPTED = 130
"""What shells make of an end by Ctrl-C."""
EXITS: Mapping[Outcome, int] = {
    Outcome.VERIFIED: EXIT_OK,
    Outcome.DRY_RUN: EXIT_OK,
    Outcome.PERFORMED: EXIT_OK,
    Outcome.INEFFECTIVE: EXIT_NON_OK,
    Outcome.FAILED: EXIT_NON_OK,
    Outcome.INTERRUPTED: EXIT_NON_OK,
    Outcome.REFUSED: EXIT_UNKNOWN,
    Outcome.RUNNING: EXIT_UNKNOWN,
}
_ANSWER_LOST = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"}
"""Codes after which the agent may have begun all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    parser.add_argument("action", type=_action, metavar="ACTION", help="what to do; `nodediag actions` lists them")
    parser.add_argument(
        "--target",
        required=True,
        metavar="T",
        help="to whom: a pid, a container id or its beginning, a pod as namespace/name, kubelet, containerd, "
        "conntrack, or a DNS server's address",
    )
    parser.add_argument("--dry-run", action="store_true", help="do everything but the last step, without asking")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--reason", type=_reason, default="", metavar="R", help="why, for the record")
    parser.add_argument(
        "--request-id",
        type=request_id,
        metavar="UUID",
        help="repeat this request: what was done for it is never done again",
    )
    add_endpoint(parser)
    add_format(parser)
    parser.epilog = (
        "Exit codes: 0 it helped, or was done, or was a dry run; 1 it did not help, failed or was interrupted; "
        "2 refused, not agreed to, or the agent does not answer."
    )


def main(arguments: argparse.Namespace) -> int:
    """Look the target up, show it, ask for confirmation unless nothing will be changed, and print the outcome."""
    from agent.client import ClientError  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    if _must_confirm(arguments) and not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return _nothing("nobody can be asked, because this is no terminal; --yes does it without asking")
    try:
        with client_of(arguments) as client:
            return _remediate(client, arguments)
    except ClientError as error:
        return _nothing(printable(str(error)))


def _remediate(client: "Client", arguments: argparse.Namespace) -> int:
    earlier = _earlier(client, arguments.request_id) if arguments.request_id else None
    if earlier is not None and earlier.outcome is not Outcome.REFUSED:  # a refused one may be sent again
        return _again(client, arguments, earlier)
    status = client.list_actions()
    action = next((each for each in status.actions if each.action is arguments.action), None)
    if action is None:
        return _nothing(f"this agent does not know {arguments.action}; `nodediag actions` lists what it knows")
    try:
        accused = look_up(arguments.target, client.get_node_report(), action)
    except NoSingleTargetError as error:
        return _nothing(str(error))
    request = Request(
        request_id=arguments.request_id or str(uuid4()),
        action=arguments.action,
        target=accused.target,
        caller="",
        dry_run=arguments.dry_run,
        fencing_token=status.highest_token,  # who may ask here acts beside the lease's holder, not instead of it
        reason=arguments.reason,
    )
    _remark(plan_lines(action, request, accused.findings, status))
    if _must_confirm(arguments) and not _agreed(action, request, status):
        return _nothing("not agreed to")
    return _wait(client, request, arguments.format)


def _must_confirm(arguments: argparse.Namespace) -> bool:
    """A dry run changes nothing, so there is nothing to confirm, and no terminal is needed for it."""
    return not (arguments.yes or arguments.dry_run)


def _earlier(client: "Client", asked: str) -> Remediation | None:
    from agent.client import ClientError  # noqa: PLC0415 - as above

    try:
        return client.get_remediation(asked)
    except ClientError as error:
        if error.code.name == "NOT_FOUND":
            return None
        raise


def _again(client: "Client", arguments: argparse.Namespace, earlier: Remediation) -> int:
    """Tell what came of a request that was made before; wait for it if it is still under way."""
    first = earlier.request
    same = (first.action, first.dry_run) == (arguments.action, arguments.dry_run)
    if not same or not could_be(arguments.target, first.target):
        dry = " (dry run)" if first.dry_run else ""
        what = f"{first.action}{dry} of {target_words(first.target)}"
        return _nothing(f"request {first.request_id} was for {what}; leave --request-id out to ask for something else")
    _remark([f"Request {first.request_id} was made before; nothing is done twice."])
    if earlier.outcome is Outcome.RUNNING:
        return _wait(client, first, arguments.format)
    return _tell(earlier, arguments.format)


def _agreed(action: ActionStatus, request: Request, status: RemediationStatus) -> bool:
    """Ask the person at the terminal; anything but yes is no."""
    dry = request.dry_run or status.dry_run
    print(f"Do {'the dry run of ' if dry else ''}{action.action}? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        with _ctrl_c_raises():
            return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return False


def _wait(client: "Client", request: Request, form: str) -> int:
    """Send the request and tell what came of it."""
    from agent.client import ClientError  # noqa: PLC0415 - as above

    find_out = f"`nodediag remediations --request-id {request.request_id}` tells what came of it"
    _remark([f"Request {request.request_id} is sent; waiting until it is known whether it helped."])
    try:
        with _ctrl_c_raises():
            done = client.remediate(
                request.action,
                request.target,
                request_id=request.request_id,
                fencing_token=request.fencing_token,
                dry_run=request.dry_run,
                reason=request.reason,
            )
    except KeyboardInterrupt:
        complain(f"no longer waiting. What was begun goes on; {find_out}")
        return INTERRUPTED
    except ClientError as error:
        return _refused(request, error, form, find_out)
    return _tell(done, form)


def _refused(request: Request, error: "ClientError", form: str, find_out: str) -> int:
    if error.refusal is None:
        complain(printable(str(error)))
        if error.code.name in _ANSWER_LOST:
            complain(f"it may have been begun all the same: {find_out}")
        return EXIT_UNKNOWN
    if form == "json":
        say_json(refused_json(request, error.refusal))
    _remark(refusal_lines(error.refusal))
    if error.refusal.retry_seconds is not None:
        _remark([f"  For that, add --request-id {request.request_id}."])
    return EXIT_UNKNOWN


def _tell(done: Remediation, form: str) -> int:
    said = say_json(remediation_json(done)) if form == "json" else say(remediation_lines(done))
    if done.evidence_id and form != "json":
        _remark([f"`nodediag evidence {printable(done.evidence_id, 200)}` prints what was seen before."])
    return EXITS[done.outcome] if said else EXIT_UNKNOWN


def _nothing(why: str) -> int:
    complain(f"{why}\nnodediag: nothing was done")
    return EXIT_UNKNOWN


def _remark(lines: Iterable[str]) -> None:
    """Say something to the person beside the result, so that standard output holds nothing but that."""
    print("\n".join(lines), file=sys.stderr, flush=True)


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt meanwhile, unless it is ignored, as under nohup."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _action(text: str) -> Action:
    """Return the action of this very name; if there is none, suggest a close one."""
    names = {each.value: each for each in Action if each is not Action.NONE}
    if text in names:
        return names[text]
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(text.lower(), lowered, n=1)
    meant = f"; did you mean {lowered[close[0]]}?" if close else "."
    raise argparse.ArgumentTypeError(f"there is no action {printable(text, 60)}{meant} There are: {', '.join(names)}")


def _reason(text: str) -> str:
    if len(text) > MAX_REASON:
        raise argparse.ArgumentTypeError(f"has {len(text)} characters; there may be {MAX_REASON}")
    return text
