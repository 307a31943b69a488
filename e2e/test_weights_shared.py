"""Weights that the platform shares among namespaces: fetched once by the operator, or put there by the platform."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import install, operator_pods
from e2e.harness import (
    Client,
    CommandError,
    Object,
    apply,
    eventually,
    find,
    get,
    kubectl,
    wait_ready,
    wait_routable,
)
from e2e.models import model
from e2e.simulation import engine_pods
from e2e.test_weights import VOLUME, start_store

pytestmark = pytest.mark.alone  # all pods get other variables meanwhile
MODELS = "e2e-models"
"""The platform's namespace."""
TEAMS = ("e2e-team-red", "e2e-team-blue")
CLAIM = "headwater-weights-cache"
SHARE: Object = {"hostPath": {"path": f"/var/tmp/headwater-e2e/{VOLUME}"}}
"""One node is all nodes, so its disk is a file system of the network."""


@pytest.fixture(scope="module")
def shared(client: Client) -> Iterator[None]:
    """The operator with a cache, and two teams."""
    names = [MODELS, *TEAMS]
    kubectl("delete", "namespace", *names, "--ignore-not-found", "--wait=true", timeout=180)
    kubectl("delete", "pv", "-l", "app.kubernetes.io/component=weights-cache", "--ignore-not-found", "--wait=true")
    apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    hub = start_store(MODELS)
    cache = {"namespace": MODELS, "models": ["hf://lab/smollm2@main"], "volume": SHARE}
    given: dict[str, Any] = {
        "weights_cache": cache,
        "weights_shared": {"hf://elsewhere/model@main": f"{CLAIM}/{folder()}"},
        "default_env": {"HF_ENDPOINT": hub},
    }
    install(*(each for name, value in given.items() for each in set_json(f"operator.settings.{name}", value)))
    # One that is about to end may still act, as it was told before.
    eventually("the former operator is gone", lambda: not any(map(ends, operator_pods())), timeout=120)
    yield
    kubectl("delete", "md", "--all", "-n", TEAMS[0], "--wait=false")
    kubectl("delete", "namespace", *names, "--wait=false")
    install()
    kubectl("delete", "pv", "-l", "app.kubernetes.io/component=weights-cache", "--wait=false")


def ends(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def set_json(name: str, value: object) -> list[str]:
    return ["--set-json", f"{name}={json.dumps(value)}"]


def folder() -> str:
    """Of the model, on the share."""
    from headwater_operator.render.weights import volume_of

    return volume_of("hf://lab/smollm2", "main").removeprefix("weights-")


@pytest.mark.timeout(600)
def test_what_two_teams_ask_for_is_fetched_once_and_neither_can_change_it(client: Client, shared: None) -> None:
    for number, team in enumerate(TEAMS):
        apply(model(f"cached-{number}", team, source="hf://lab/smollm2"))
    for number, team in enumerate(TEAMS):
        weights = wait_ready(f"cached-{number}", team, 300)["status"]["weights"]
        assert weights["phase"] == "Filled"
        assert weights["claim"] == CLAIM
        assert "verified" in weights["message"]
        assert not find("job", team)
    asked = [line for line in kubectl("logs", "store", "-n", MODELS).splitlines() if line.startswith("/")]
    assert sum("/revision/main" in line for line in asked) == 1, asked
    print(f"the hub was asked {len(asked)} times, for two teams")
    for number, team in enumerate(TEAMS):
        (pod,) = engine_pods(f"cached-{number}", team)
        with pytest.raises(CommandError, match="Read-only file system"):
            kubectl("exec", pod["metadata"]["name"], "-n", team, "-c", "engine", "--", "touch", "/models/changed")
        wait_routable(f"cached-{number}", team)
        assert client.ask(f"cached-{number}", "Hello?")["status"] == 200


@pytest.mark.timeout(300)
def test_what_the_platform_has_put_there_is_mounted_and_fetched_by_nobody(client: Client, shared: None) -> None:
    team = TEAMS[0]
    eventually("the share is there", lambda: get("pvc", CLAIM, team), timeout=60)
    apply(model("placed", team, source="hf://elsewhere/model"))
    weights = wait_ready("placed", team, 200)["status"]["weights"]
    assert weights == {"phase": "Filled", "claim": CLAIM, "message": "shared by the platform, not fetched"}
    assert not find("job", team)
    assert "elsewhere" not in kubectl("logs", "store", "-n", MODELS)
    wait_routable("placed", team)
    assert client.ask("placed", "Hello?")["status"] == 200
