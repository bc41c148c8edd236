"""`make lint` refuses changes of the protos that nobody has described, or that break clients of the API as released."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 60
"""buf may have to be fetched first."""
REPORT = "nodediag/v1/node_report.proto"
DIAGNOSTICS = "nodediag/v1/diagnostics_service.proto"
UID = "  // The pod's uid.\n  string uid = 3;\n"


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "proto", tmp_path / "proto"))


def changed(protos: Path, name: str, before: str, after: str) -> None:
    text = (protos / name).read_text()
    assert text.count(before) == 1, f"{before!r} is not once in {name}"
    (protos / name).write_text(text.replace(before, after))


def linted(protos: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", ROOT / "tools" / "lint-proto", protos],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        (REPORT, "string uid = 3;", "string uid = 9;", 'Previously present field "3" with name "uid"'),
        (REPORT, UID, "", 'Previously present field "3" with name "uid"'),
        (REPORT, "string uid = 3;", "bytes uid = 3;", 'changed type from "string" to "bytes"'),
        (REPORT, "string uid = 3;", "string pod_uid = 3;", 'changed name from "uid" to "pod_uid"'),
        (REPORT, "TARGET_KIND_SHIM = 1;", "TARGET_KIND_SHIM = 12;", 'Previously present enum value "1"'),
        (
            DIAGNOSTICS,
            "  rpc FetchEvidence(FetchEvidenceRequest) returns (stream FetchEvidenceResponse);\n",
            "",
            'Previously present RPC "FetchEvidence"',
        ),
    ],
    ids=["another number", "field gone", "another type", "another name", "another enum number", "method gone"],
)
def test_a_change_that_breaks_clients_is_refused_with_what_to_do(
    protos: Path, name: str, before: str, after: str, told: str
) -> None:
    changed(protos, name, before, after)
    done = linted(protos)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
    assert "mark the old\nfield [deprecated = true]" in done.stderr
    assert 'Only as long as nobody can have a client of it: "make proto-release"' in done.stderr


def test_what_is_added_is_welcome(protos: Path) -> None:
    changed(protos, REPORT, UID, UID + "  // The pod's IP address.\n  string ip = 99;\n")
    done = linted(protos)
    assert done.returncode == 0, done.stderr
    assert "compatible with what is released" in done.stdout


def test_a_field_nobody_has_described_is_refused(protos: Path) -> None:
    changed(protos, REPORT, UID, UID.splitlines(keepends=True)[1])
    done = linted(protos)
    assert done.returncode != 0
    assert 'Field "uid" should have a non-empty comment' in done.stdout


def test_what_is_recorded_as_released_is_what_counts_from_then_on(protos: Path) -> None:
    changed(protos, REPORT, "string uid = 3;", "string uid = 9;")
    subprocess.run([ROOT / "tools" / "release-proto", protos], timeout=SECONDS, check=True)
    assert linted(protos).returncode == 0
    changed(protos, REPORT, "string uid = 9;", "string uid = 3;")
    assert 'Previously present field "9" with name "uid"' in linted(protos).stdout


def test_nothing_recorded_as_released_is_an_error(protos: Path) -> None:
    (protos / "released.yaml").unlink()
    assert linted(protos).returncode != 0


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("1", 1), ("false", 0), ("", 0)])
def test_without_npm_that_is_told_and_is_an_error_in_ci(protos: Path, ci: str, code: int) -> None:
    done = linted(protos, CI=ci, PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (code, "")
    assert "was not checked: that needs npm (Debian: apt-get install npm)" in done.stderr
