"""Our engine over several ranks, with real processes: two in one pod, and a group of two pods that restarts as one."""

import json
import time

import pytest

from e2e.harness import Client, Object, apply, eventually, eventually_told, find, kubectl, wait_ready, wait_routable
from e2e.models import model

TEXT = "The Seine is a river in the north of France. It flows through Paris and into the English Channel. " * 4
RANKS = """\
import pathlib
commands = (path.read_bytes().split(b"\\0") for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"))
print(sum(b"headwater_engine.core" in each or b"headwater_engine.worker" in each for each in commands))
"""
"""How many ranks run in a pod."""


@pytest.mark.timeout(300)
def test_two_ranks_in_one_pod_answer_from_one_cache(client: Client, namespace: str) -> None:
    apply(model("pair", namespace, parallelism={"tensor": 2}))
    wait_ready("pair", namespace)
    assert [ranks(pod) for pod in pods("pair", namespace)] == [2]
    answers_a_conversation("pair", namespace, client)


@pytest.mark.timeout(400)
def test_a_group_of_two_pods_answers_and_is_restarted_as_one_when_a_worker_is_killed(
    client: Client, namespace: str
) -> None:
    apply(model("group", namespace, parallelism={"tensor": 2, "nodes": 2}))
    wait_ready("group", namespace)
    assert [ranks(pod) for pod in pods("group", namespace)] == [1, 1]
    answers_a_conversation("group", namespace, client)

    before = {pod["metadata"]["uid"] for pod in pods("group", namespace)}
    worker = next(pod for pod in pods("group", namespace) if index(pod) == "1")
    killed = time.monotonic()
    kubectl("delete", "pod", worker["metadata"]["name"], "-n", namespace, "--grace-period=0", "--force", "--wait=false")
    eventually("both pods are new ones", lambda: len(uids("group", namespace) - before) == 2, timeout=120)
    wait_ready("group", namespace)
    print(f"group: ready {time.monotonic() - killed:.0f} s after its worker was killed")
    eventually_told(namespace, "GroupRestarted")
    answers_a_conversation("group", namespace, client)


def answers_a_conversation(name: str, namespace: str, client: Client) -> None:
    """Over the gateway, the second turn from cache."""
    wait_routable(name, namespace)
    eventually(f"{name} answers", lambda: _answers(name, client), timeout=180)
    first, second = client.converse(name, f"{TEXT}\nWhich river flows through Paris?", "And into which sea?")
    assert first["usage"]["completion_tokens"]
    usage = second["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    print(
        f"{name}: second turn: {cached} of {usage['prompt_tokens']} prompt tokens from cache, by {second['endpoint']}"
    )
    assert cached > usage["prompt_tokens"] / 2


def _answers(name: str, client: Client) -> bool:
    answer = client.ask(name, "Hello!")
    assert answer["status"] == 200, answer
    return True


def pods(name: str, namespace: str) -> list[Object]:
    """Those that are there to stay, by their numbers."""
    selector = f"headwater.dev/deployment={name},app.kubernetes.io/component=engine"
    found = [pod for pod in find("pods", namespace, selector) if "deletionTimestamp" not in pod["metadata"]]
    return sorted(found, key=index)


def index(pod: Object) -> str:
    return str(pod["metadata"]["labels"].get("apps.kubernetes.io/pod-index", "0"))


def uids(name: str, namespace: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods(name, namespace)}


def ranks(pod: Object) -> int:
    metadata = pod["metadata"]
    told = kubectl("exec", metadata["name"], "-n", metadata["namespace"], "-c", "engine", "--", "python3", "-c", RANKS)
    return int(json.loads(told))
