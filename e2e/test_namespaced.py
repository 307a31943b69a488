"""An operator and routers for one namespace only, with rights in no other."""

from collections.abc import Iterator

import pytest

from e2e.conftest import install
from e2e.harness import SYSTEM, Client, apply, eventually, get, kubectl, run, wait_ready, wait_routable
from e2e.models import model

pytestmark = pytest.mark.alone  # other namespaces have no operator meanwhile


@pytest.fixture
def namespaced(client: Client, namespace: str) -> Iterator[str]:
    install("--set-json", f'operator.namespaces=["{namespace}"]')
    yield namespace
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


def test_the_questions_of_the_chart_are_answered(client: Client) -> None:
    eventually("helm test", lambda: "Phase:          Succeeded" in run("helm", "test", "headwater", "-n", SYSTEM), 120)
