"""What the tests of the API share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def everybodys_folder() -> Iterator[Path]:
    """A folder every user may enter and write to; pytest's own are closed to all but root."""
    path = Path(tempfile.mkdtemp(prefix="nodediag-test-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)
