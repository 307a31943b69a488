"""Engines that can be changed over HTTP ask for a key, which the operator knows without reading any Secret."""

import base64
from collections.abc import Iterator

import httpx
import pytest

from headwater import backends
from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Key, Object, uid_of
from headwater_operator.reconcile.adapter_sync import Wanted, sync_adapters
from tests.operator.fake_api import Call, FakeCluster
from tests.operator.fake_vllm import FakeVLLM, fake_vllm
from tests.operator.world import World

SQL: Object = {"name": "sql", "source": "hf://owner/sql"}
SPEC: Object = {"backend": {"type": "sglang"}, "adapters": [SQL]}
ROOT = "headwater-operator-key"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def key_of(world: World, name: str = "m") -> str:
    return str(world.child("Secret", f"{name}-admin")["stringData"]["key"])


def asked_for(cluster: FakeCluster, verb: str) -> set[str]:
    return {call.name for call in cluster.calls if call.kind == "Secret" and call.verb == verb}


async def test_its_secret_is_there_before_the_pods_that_refer_to_it(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    calls = [(call.verb, call.kind, call.name) for call in world.cluster.calls]
    assert calls.index(("create", "Secret", "m-admin")) < calls.index(("apply", "Deployment", "m"))
    (container,) = world.child("Deployment")["spec"]["template"]["spec"]["containers"]
    (variable,) = [each for each in container["env"] if each["name"] == "HEADWATER_ADMIN_KEY"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "m-admin", "key": "key"}
    command = container["command"]
    assert command[command.index("--admin-api-key") + 1] == "$(HEADWATER_ADMIN_KEY)"
    assert key_of(world) not in str(world.child("Deployment"))


async def test_the_operator_reads_no_secret_but_its_own(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    await world.restart()
    world.edit(adapters=[SQL, {"name": "law", "source": "hf://owner/law"}])
    await world.settle()
    assert asked_for(world.cluster, "get") == {ROOT}
    assert {call.verb for call in world.cluster.calls if call.kind == "Secret"} <= {"get", "create"}


async def test_adapters_are_loaded_with_the_key(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    (engine,) = world.engines.values()
    assert engine.adapters == {"sql": "owner/sql"}
    assert engine.keys == {f"Bearer {key_of(world)}"}
    await world.restart()
    world.edit(adapters=[SQL, {"name": "law", "source": "hf://owner/law"}])
    await world.settle()
    assert engine.keys == {f"Bearer {key_of(world)}"}, "a new operator has the same one"


async def test_a_server_without_admin_keys_is_told_none(world: World) -> None:
    world.create(backend={"type": "vllm"}, adapters=[SQL])
    await world.settle()
    (engine,) = world.engines.values()
    assert engine.keys == {None}
    assert world.cluster.all("Secret") == []


async def test_a_resource_at_rest_costs_no_call_nor_does_a_new_operator_write(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    await world.at_rest()
    await world.restart()
    await world.settle()
    assert world.cluster.writes() == []


async def test_each_has_its_own_and_it_goes_with_the_resource(world: World) -> None:
    for name in ("m", "n"):
        world.create(name, **SPEC)
    await world.settle("m", "n")
    assert len({key_of(world, "m"), key_of(world, "n")}) == 2
    root = base64.b64decode(world.child("Secret", ROOT)["data"]["key"])
    assert len(root) == 32
    world.delete("m")
    await world.settle("m", "n")
    assert {each["metadata"]["name"] for each in world.cluster.all("Secret")} == {"n-admin", ROOT}


async def test_a_key_that_pods_miss_is_put_back(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    key = key_of(world)
    world.cluster.remove(world.child("Secret", "m-admin"))
    missing = {"reason": "CreateContainerConfigError", "message": 'secret "m-admin" not found'}
    waiting = {"name": "engine", "restartCount": 0, "state": {"waiting": missing}}
    name = world.kube.pods()[0]["metadata"]["name"]
    world.cluster.merge("Pod", name, {"status": {"containerStatuses": [waiting]}}, manager="kubelet")
    await world.reconcile()
    assert key_of(world) == key


async def test_engines_of_an_earlier_render_version_go_on_without(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headwater_operator.render import pin

    current = pin.CURRENT_RENDER_VERSION
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", 1)
    world.create(**SPEC)
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    assert not asked_for(world.cluster, "create") & {"m-admin"}
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", current)
    await world.restart()
    await world.settle()
    assert {uid_of(pod) for pod in world.kube.pods()} == engines
    world.edit(context={"maxTokens": 4096})
    await world.settle()
    assert key_of(world)
    assert not {uid_of(pod) for pod in world.kube.pods()} & engines


async def test_a_missing_right_is_said_and_others_go_on(world: World) -> None:
    def answer(call: Call) -> ApiError | None:
        return ApiError(403, "Forbidden", "secrets is forbidden") if call.kind == "Secret" else None

    world.cluster.refuses = answer
    world.create(**SPEC)
    world.create("n")
    await world.settle("m", "n")
    assert world.condition("Degraded") == ("True", "Refused")
    assert "secrets is forbidden" in world.message("Degraded")
    assert world.condition("Ready", "n") == ("True", "ReplicasReady")


async def test_operators_that_make_the_key_at_once_agree(world: World) -> None:
    first = await world.keys.of(Key("default", "m"))
    world.start()
    create, root = world.cluster.create, world.child("Secret", ROOT)
    world.cluster.remove(root)

    async def another_was_quicker(manifest: Object) -> Object:
        world.cluster.add(root | {"metadata": {"name": ROOT, "namespace": "default"}})
        return await create(manifest)

    world.cluster.create = another_was_quicker  # type: ignore[method-assign]
    assert await world.keys.of(Key("default", "m")) == first


# What an engine sees


@pytest.fixture
def engine() -> Iterator[FakeVLLM]:
    with fake_vllm() as server:
        yield server


async def test_a_wrong_key_is_told_in_the_engines_words(engine: FakeVLLM) -> None:
    engine.admin_key = "right"
    async with httpx.AsyncClient() as client:
        want = Wanted({"sql": "owner/sql"}, {})
        (refused,) = await sync_adapters(backends.get("vllm"), engine.url, want, client, "wrong")
        (loaded,) = await sync_adapters(backends.get("vllm"), engine.url, want, client, "right")
    assert not refused.loaded and refused.message == "the engine answered 401: Unauthorized"
    assert loaded.loaded
