"""Which right is missing is decided by what is held, not guessed: against doubles, and against this very process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host.bundles import TASKS, Bundles
from agent.host.cgroups import Cgroups
from agent.host.kubelet import KubeletApiError
from agent.host.kubelet_api import _contents
from agent.host.rights import READ, SEARCH, WRITE, Capability, Held, Rights, missing
from agent.model import CannotSeeError, DeploymentCause, DeploymentFault
from tests.unit.builders import StateDir
from tests.unit.doubles import ALL_CAPABILITIES, HeldRights, rights_without

DENIED = PermissionError(13, "Permission denied")
PROFILE = "cri-containerd.apparmor.d (enforce)"
CONTEXT = "system_u:system_r:container_t:s0:c1,c2"
ROOT = Path(__file__).parents[3]


def said(fault: DeploymentFault) -> tuple[DeploymentCause, str]:
    return fault.cause, fault.subject


# -- the decision


@pytest.mark.parametrize("capability", Capability)
def test_a_capability_is_named_only_if_it_is_not_held(capability: Capability) -> None:
    lacks = missing(rights_without(capability).held(), capability, "because")
    assert said(lacks) == (DeploymentCause.CAPABILITY, f"CAP_{capability.name}")
    assert f"the agent needs CAP_{capability.name}, because because" in lacks.message
    assert f"add {capability.name} to" in lacks.remedy
    for held in (
        Held(capabilities=ALL_CAPABILITIES),
        Held(capabilities=ALL_CAPABILITIES, apparmor=PROFILE),
        Held(capabilities=ALL_CAPABILITIES, selinux=CONTEXT),
        Held(capabilities=ALL_CAPABILITIES, initial_user_namespace=False),
    ):
        assert missing(held, capability, "because").cause is not DeploymentCause.CAPABILITY


@pytest.mark.parametrize(
    ("held", "cause", "subject", "remedy"),
    [
        (Held(capabilities=ALL_CAPABILITIES, apparmor=PROFILE), DeploymentCause.APPARMOR, PROFILE, "Unconfined"),
        (Held(capabilities=ALL_CAPABILITIES, selinux=CONTEXT), DeploymentCause.SELINUX, CONTEXT, "spc_t"),
        (
            Held(capabilities=ALL_CAPABILITIES, initial_user_namespace=False),
            DeploymentCause.NAMESPACE, "hostUsers", "remove hostUsers: false",
        ),
        (Held(capabilities=ALL_CAPABILITIES), DeploymentCause.PERMISSION, "unknown", "seccomp"),
    ],
)  # fmt: skip
def test_without_a_missing_capability_what_else_denies_is_named(
    held: Held, cause: DeploymentCause, subject: str, remedy: str
) -> None:
    fault = missing(held, Capability.SYS_PTRACE, "x")
    assert said(fault) == (cause, subject)
    assert remedy in fault.remedy


# -- paths


def test_a_folder_that_not_even_its_owner_may_enter_takes_dac_read_search(tmp_path: Path) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    sockets.chmod(0o600)
    rights = rights_without(Capability.DAC_READ_SEARCH, Capability.DAC_OVERRIDE, uid=os.getuid())
    fault = rights.path(str(sockets / "x.sock"), DENIED, WRITE)
    assert said(fault) == (DeploymentCause.CAPABILITY, "CAP_DAC_READ_SEARCH")
    assert fault.message == (f"Permission denied: the agent needs CAP_DAC_READ_SEARCH, because {sockets} has mode 0600")


@pytest.mark.parametrize(("name", "bit"), [("x", READ), ("s/x", READ), ("s/x", SEARCH), ("s", READ)])
def test_dac_override_suffices_to_read_and_enter(tmp_path: Path, name: str, bit: int) -> None:
    """So what else denies it is named."""
    (tmp_path / "s").mkdir()
    for path in (tmp_path / "x", tmp_path / "s"):
        path.touch()
        path.chmod(0o200)
    rights = rights_without(Capability.DAC_READ_SEARCH, uid=os.getuid(), apparmor=PROFILE)
    fault = rights.path(str(tmp_path / name), DENIED, bit)
    assert said(fault) == (DeploymentCause.APPARMOR, PROFILE)
    assert "although the agent holds CAP_DAC_OVERRIDE" in fault.message


def test_the_first_obstacle_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b").chmod(0o000)
    (tmp_path / "a").chmod(0o600)
    rights = rights_without(Capability.DAC_READ_SEARCH, Capability.DAC_OVERRIDE, uid=os.getuid())
    fault = rights.path(str(tmp_path / "a/b/c"), DENIED)
    assert f"because {tmp_path / 'a'} has mode 0600" in fault.message


@pytest.mark.parametrize(
    ("mode", "bit", "capability"),
    [
        (0o200, READ, "CAP_DAC_READ_SEARCH"),
        (0o400, WRITE, "CAP_DAC_OVERRIDE"),
    ],
)
def test_a_file_takes_what_its_mode_denies_its_owner(tmp_path: Path, mode: int, bit: int, capability: str) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)
    lacking = rights_without(Capability.DAC_READ_SEARCH, Capability.DAC_OVERRIDE, uid=os.getuid())
    assert lacking.path(str(file), DENIED, bit).subject == capability


@pytest.mark.parametrize("bit", [READ, SEARCH, WRITE])
def test_what_is_its_owner_s_alone_takes_its_owner_s_uid(tmp_path: Path, bit: int) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir(mode=0o700)
    tmp_path.chmod(0o711)
    owner = folder.stat().st_uid
    other = HeldRights(Held(uid=owner + 1000))
    held = [each for each in folder.parents if not other.now.permitted(each.stat(), SEARCH)]
    fault = other.path(str(folder), DENIED, bit)
    assert said(fault) == (DeploymentCause.USER, f"uid {owner}")
    assert f"the agent runs as uid {owner + 1000}, and {held[-1] if held else folder} has mode 0700" in fault.message


def test_where_every_mode_permits_it_the_confinement_is_named(tmp_path: Path) -> None:
    fault = rights_without(uid=os.getuid(), apparmor=PROFILE).path(str(tmp_path), DENIED)
    assert said(fault) == (DeploymentCause.APPARMOR, PROFILE)
    assert "no capability is missing" in fault.message
    assert str(tmp_path) in fault.message


# -- other processes


def test_a_signal_to_a_process_of_the_same_user_takes_no_capability() -> None:
    none = HeldRights(Held(uid=0, apparmor=PROFILE))
    assert said(none.signal("process 7", 0)) == (DeploymentCause.APPARMOR, PROFILE)
    assert said(none.signal("process 7", 1000)) == (DeploymentCause.CAPABILITY, "CAP_KILL")


# -- what is held


def fake_self(tmp_path: Path, **files: str) -> Rights:
    ids = "Uid:\t0\t7\t0\t0\nGid:\t0\t8\t0\t0\nGroups:\t9 10 \n"
    texts = {"status": f"Name:\tnodediag\n{ids}CapEff:\t0000000000081004\n"}
    for name, text in (texts | {key.replace("__", "/"): text for key, text in files.items()}).items():
        path = tmp_path / "self" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Rights(str(tmp_path))


def test_effective_ids_and_capabilities_are_read(tmp_path: Path) -> None:
    held = fake_self(tmp_path).held()
    assert (held.uid, held.groups) == (7, frozenset({8, 9, 10}))
    assert {each for each in Capability if held.has(each)} == {
        Capability.NET_ADMIN, Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "apparmor", "selinux"),
    [
        ({"attr__apparmor__current": f"{PROFILE}\n"}, PROFILE, ""),
        ({"attr__current": f"{PROFILE}\n"}, PROFILE, ""),
        ({"attr__apparmor__current": "unconfined\n", "attr__current": f"{CONTEXT}\0"}, "", CONTEXT),
        ({"attr__current": "docker-default (complain)\n"}, "", ""),
        ({"attr__current": "unconfined\n"}, "", ""),
        ({"attr__current": f"{CONTEXT}\0"}, "", CONTEXT),
        ({"attr__current": "system_u:system_r:spc_t:s0\0"}, "", ""),
        ({}, "", ""),
    ],
)
def test_confinement_is_read_from_the_label(tmp_path: Path, files: dict[str, str], apparmor: str, selinux: str) -> None:
    held = fake_self(tmp_path, **files).held()
    assert (held.apparmor, held.selinux) == (apparmor, selinux)


@pytest.mark.parametrize(
    ("uid_map", "initial"),
    [("         0          0 4294967295\n", True), ("         0     100000      65536\n", False), ("", True)],
)
def test_a_user_namespace_of_its_own_is_known_by_its_map(tmp_path: Path, uid_map: str, *, initial: bool) -> None:
    assert fake_self(tmp_path, uid_map=uid_map).held().initial_user_namespace is initial


@contextmanager
def as_somebody() -> Iterator[None]:
    """Be a user without any capability for the body."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that everybody may reach, as those of pytest may not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


ROOT_ALONE = pytest.mark.skipif(os.getuid() != 0, reason="takes root, who can give capabilities up")


@ROOT_ALONE
@pytest.mark.parametrize("closed", ["", "k8s.io", "k8s.io/c", "k8s.io/c/config.json"])
def test_bundles_that_may_not_be_read_are_told_with_what_is_missing(open_path: Path, closed: str) -> None:
    state = StateDir(open_path)
    state.add("c")
    (open_path / TASKS / closed).chmod(0o700 if not closed.endswith(".json") else 0o600)
    bundles = Bundles(str(open_path), ("k8s.io",))
    fault: DeploymentFault | None
    with as_somebody():
        try:
            (bundle,) = bundles.list()
            fault = bundle.fault
        except CannotSeeError as error:
            fault = error.fault
    assert fault is not None
    assert said(fault) == (DeploymentCause.USER, "uid 0")
    assert f"{open_path / TASKS / closed}".rstrip("/") in fault.message
    (readable,) = bundles.list()
    assert (readable.fault, readable.problem) == (None, "")


@ROOT_ALONE
def test_cgroups_that_may_not_be_entered_are_not_called_unmounted(open_path: Path) -> None:
    folder = open_path / "fs/cgroup/kubepods"
    (folder / "pod1").mkdir(parents=True)
    folder.chmod(0o700)
    cgroups = Cgroups(str(open_path))
    with as_somebody():
        fault = cgroups.fault(("0::/kubepods/pod1",))
    assert fault is not None
    assert said(fault) == (DeploymentCause.USER, "uid 0")
    assert cgroups.fault(("0::/kubepods/pod1",)) is None


@ROOT_ALONE
def test_a_certificate_that_may_not_be_read_names_what_is_missing(open_path: Path) -> None:
    file = open_path / "kubelet.crt"
    file.touch(mode=0o600)
    with (
        as_somebody(),
        pytest.raises(KubeletApiError, match=r"kubelet\.crt \(kubelet\.ca_file\) cannot be read") as seen,
    ):
        _contents(str(file), 100, "kubelet.ca_file")
    assert seen.value.fault is not None
    assert said(seen.value.fault) == (DeploymentCause.USER, "uid 0")


@ROOT_ALONE
def test_the_real_kernel_denies_what_is_said_to_be_missing(tmp_path: Path) -> None:
    """Root without the capability cannot enter its own folder of mode 0600, and is told so."""
    sockets = tmp_path / "s"
    sockets.mkdir()
    sockets.chmod(0o600)
    code = (
        "import sys; from agent.host.rights import Rights\n"
        "try: open(sys.argv[1])\n"
        "except PermissionError as error: print(Rights().path(sys.argv[1], error).message)"
    )
    dropped = "-dac_read_search,-dac_override"
    without = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", sys.executable, "-c", code]
    done = subprocess.run(
        [*without, str(sockets / "x")], capture_output=True, text=True, timeout=30, check=False, cwd=ROOT
    )
    assert done.stdout == (
        f"Permission denied: the agent needs CAP_DAC_READ_SEARCH, because {sockets} has mode 0600\n"
    ), done.stderr
