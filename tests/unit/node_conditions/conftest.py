"""An API server to tell, and what there is to tell it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.api_standin import ApiStandin

NODE = "worker-3"


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[ApiStandin]:
    with ApiStandin(tmp_path, NODE) as server:
        yield server
        assert server.complaints == []
