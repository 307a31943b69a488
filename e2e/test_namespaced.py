"""An operator and routers for one namespace only, with rights in no other."""

from collections.abc import Iterator

import pytest

from e2e.conftest import fresh_namespace, install
from e2e.harness import (
    SYSTEM,
    Client,
    Object,
    apply,
    condition,
    eventually,
    get,
    kubectl,
    run,
    wait_ready,
    wait_routable,
)
from e2e.models import model
from e2e.simulation import add_volumes

pytestmark = pytest.mark.alone  # other namespaces have no operator meanwhile


VOLUME = "e2e-unpulled"


def test_the_questions_of_the_chart_are_answered(client: Client) -> None:
    eventually("helm test", lambda: "Phase:          Succeeded" in run("helm", "test", "headwater", "-n", SYSTEM), 120)


@pytest.fixture(scope="module")
def namespaced(client: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """Whose operator fetches weights with an image that is not there."""
    name, image = "e2e-namespaced", "localhost/there-is-none:1"
    with fresh_namespace(name, request.node):
        only = ["--set-json", f'operator.namespaces=["{name}"]']
        install(*only, "--set-string", f"operator.settings.weights_image={image}")
        yield name
        install()


@pytest.mark.timeout(400)
def test_one_namespace_is_served_and_the_others_are_left_alone(client: Client, namespaced: str) -> None:
    account = f"system:serviceaccount:{SYSTEM}:headwater-operator"
    assert kubectl("auth", "can-i", "patch", "deployments", "-n", namespaced, "--as", account).strip() == "yes"
    with pytest.raises(AssertionError, match="no"):
        kubectl("auth", "can-i", "patch", "deployments", "-n", "default", "--as", account)
    apply(model("near", namespaced), model("far", "default"))
    try:
        wait_ready("near", namespaced)
        wait_routable("near", namespaced)
        assert client.ask("near", "Hello?")["status"] == 200
        assert client.ask("far", "Hello?")["body"]["error"]["code"] == "model_not_found"
        assert not (get("md", "far", "default") or {}).get("status")
    finally:
        kubectl("delete", "md", "far", "-n", "default", "--timeout=30s")


@pytest.fixture
def volume() -> Iterator[None]:
    kubectl("delete", "pv", VOLUME, "--ignore-not-found", "--wait=true")
    add_volumes([VOLUME], size="2Gi")
    yield
    kubectl("delete", "pv", VOLUME, "--ignore-not-found", "--wait=false")


@pytest.mark.timeout(300)
def test_an_image_that_fetches_weights_and_is_not_there_is_told_of_long_before_the_fetch_is_late(
    namespaced: str, volume: None
) -> None:
    apply(model("unpulled", namespaced, source="hf://lab/model", weights={"size": "1Gi", "keep": False}))

    def told() -> Object | None:
        found = condition(get("md", "unpulled", namespaced), "Degraded")
        return found if found.get("reason") == "ImagePullFailed" else None

    found = eventually("Degraded says ImagePullFailed", told, timeout=150)
    assert found is not None and "--weights-image" in found["message"]
