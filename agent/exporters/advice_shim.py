"""What to do about a shim, and about container processes that have lost theirs.

SIGKILL to a shim is the last step, and never the end of it: on containerd 2.x the processes of its containers can
survive (containerd#10727), while the kubelet starts a second copy of each container 1.2 to 4 s later. So the step that
kills a shim by hand also ends what survives, and the step after it lists what is left.
"""

import re

from agent.exporters.advice_steps import (
    BY_HAND,
    Advice,
    Step,
    by_agent,
    container_ids,
    each_pid_in,
    listed_in,
    with_pid,
    with_pod,
)
from agent.model import Finding

_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
WAIT_SECONDS = 15
"""After a step that may help: longer than a finding takes to clear."""
_SURVIVORS = (
    "On containerd 2.x the containers' processes can survive this, and the kubelet starts a second copy of them 1.2 to "
    "4 s later: two writers on one volume."
)
_STILL = f"Only if this finding is still reported {WAIT_SECONDS} s after step 1"


def kill_shim(finding: Finding) -> Advice:
    """Return the steps for a shim that is to be killed, after what may spare it."""
    first = _first(finding)
    when = _STILL if first and _may_help(finding) else _only_if_nothing_is_lost(finding)
    agent = by_agent(
        finding,
        "Have the agent kill the shim. It probes the shim again, keeps evidence, and right after the shim ends the "
        f"processes of its containers. {_afterwards(finding)}",
        when,
    )
    unknown = Step("Find the shim's process: it is not known here, so there is nothing to signal yet. See the runbook.")
    return Advice((*first, *agent, *_by_hand(finding, when)) or (unknown,))


def _first(finding: Finding) -> tuple[Step, ...]:
    """What is done before the kill: it may spare the shim, or shows what the kill would do."""
    if finding.values.get("processState") in {"T", "t"}:
        return with_pid(
            finding,
            "Continue the shim, which is only stopped. Nothing is lost by this.",
            "grep -x containerd-shim /proc/{pid}/comm && kill -CONT {pid}",
            "Only if nobody stopped it on purpose (a debugger, a checkpoint)",
        )
    runtime = finding.values.get("runcPid")
    if isinstance(runtime, int) and finding.values.get("runcState") != "D":
        return (
            Step(
                "End the runc that the finding names. Its operation then fails and may be tried again; the containers "
                "run on.",
                "Only if no long operation, such as a checkpoint, was started on purpose",
                (f"grep -xE 'runc|crun' /proc/{runtime}/comm && kill {runtime}",),
            ),
        )
    if finding.values.get("processState") == "D":
        return with_pid(
            finding,
            "See what the shim waits for in the kernel, as a rule a disk or a network mount, and fix that. A kill "
            "takes effect only once the kernel lets the process go.",
            "cat /proc/{pid}/wchan; echo; dmesg | tail -n 50",
        )
    if _is_orphaned(finding):
        return _what_runs_below(finding)
    return ()


def _may_help(finding: Finding) -> bool:
    return not _is_orphaned(finding)


def _is_orphaned(finding: Finding) -> bool:
    return "orphanedSeconds" in finding.values


def _what_runs_below(finding: Finding) -> tuple[Step, ...]:
    pid, ids = finding.target.pid, container_ids(finding)
    commands = ((f"cat /proc/{pid}/task/*/children",) if pid else ()) + ((listed_in(ids),) if ids else ())
    return (Step("See what still runs below the shim or in its containers.", commands=commands),) if commands else ()


def _only_if_nothing_is_lost(finding: Finding) -> str:
    return "Only if nothing runs there, or what runs there may end" if _is_orphaned(finding) else ""


def _afterwards(finding: Finding) -> str:
    if _is_orphaned(finding):
        return "containerd no longer knows this shim, so nothing is started again."
    return "All containers of the pod end at once; the kubelet starts them again."


def _by_hand(finding: Finding, when: str) -> tuple[Step, ...]:
    pid, ids = finding.target.pid, container_ids(finding)
    if not pid:
        return ()
    kill = f"grep -x containerd-shim /proc/{pid}/comm && kill -9 {pid}"
    condition = f"{when}, and only if remediation is disabled on this node" if when else BY_HAND
    if not ids:
        see = "See that no process of its containers is left (runbook, section ProcessesWithoutShim)."
        return (Step(f"Kill the shim by hand. {_SURVIVORS} {see}", condition, (kill,)),)
    survivors = each_pid_in(ids, "kill -9 $p")
    return (
        Step(
            f"Kill the shim by hand, and in the same command the processes of its containers. {_SURVIVORS}",
            condition,
            (f"{kill} && {survivors}",),
        ),
        Step(
            "List what is left of these containers by pid, name and state. Nothing but zombies (Z) is left once all "
            "their processes have ended; the processes of a second copy have other container ids.",
            "After a kill by hand",
            (listed_in(ids),),
        ),
        Step(
            "End what is left, each process by its pid.",
            "Only if the step before lists any that are no zombies",
            (survivors,),
        ),
    )


def processes_without_shim(finding: Finding) -> Advice:
    """Return the steps for the processes of a container that Kubernetes counts as gone."""
    ids = container_ids(finding)
    if not ids:
        return Advice((Step("Nothing on this node fixes this safely by itself. See the runbook."),))
    return Advice(
        (
            Step(
                "List the processes that run on, by pid, name and state.",
                commands=(listed_in(ids),),
            ),
            *_pod_of_uid(finding),
            *with_pod(
                finding.pod,
                "See whether Kubernetes has started a second copy: two copies may be writing the same data.",
                "get pod -o wide",
            ),
            Step(
                "End the processes that run on, with time to end by themselves.",
                "Only if the pod is gone, or a second copy of the container runs",
                (each_pid_in(ids, "kill $p"),),
            ),
            Step(
                "End what is left, without a grace period.",
                "Only if the first step still lists processes 30 s after that",
                (each_pid_in(ids, "kill -9 $p"),),
            ),
        )
    )


def _pod_of_uid(finding: Finding) -> tuple[Step, ...]:
    """Return the step that finds the pod by its uid, where its name is not known any more."""
    uid = finding.values.get("podUid")
    if finding.pod is not None or not isinstance(uid, str) or not _UID.match(uid):
        return ()
    columns = "NAMESPACE:.metadata.namespace,NAME:.metadata.name,UID:.metadata.uid,NODE:.spec.nodeName"
    return (
        Step(
            "See whether its pod still exists, and runs a second copy. Nothing is printed if it is gone; a static pod "
            "has another uid in the API.",
            commands=(f"kubectl get pods -A -o custom-columns={columns} | grep {uid}",),
        ),
    )
