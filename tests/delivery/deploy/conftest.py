import pytest

from tests.delivery.deploy.kustomize import COMBINED, OVERLAYS, Object, combination, overlay


@pytest.fixture(params=[*OVERLAYS, *("+".join(names) for names in COMBINED)])
def every(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    """The objects of each overlay, and of each set of several components."""
    name: str = request.param
    return overlay(name) if name in OVERLAYS else combination(tuple(name.split("+")))
