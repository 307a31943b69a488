"""Adapters: what an engine has is made what the resource says, and only the engine's own list counts as loaded."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import backends
from headwater.resource import ModelDeployment
from headwater_operator.reconcile.adapter_sync import AdapterState, Wanted, plan, summarize, sync_adapters, wanted
from tests.operator.fake_vllm import FakeVLLM, fake_vllm

VLLM = backends.get("vllm")


@pytest.fixture
def engine() -> Iterator[FakeVLLM]:
    with fake_vllm() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def sync(engine: FakeVLLM, client: httpx.AsyncClient, **paths: str) -> dict[str, AdapterState]:
    states = await sync_adapters(VLLM, engine.url, Wanted(paths, {}), client)
    return {state.name: state for state in states}


async def test_what_is_missing_is_loaded_and_what_is_not_wanted_goes(
    engine: FakeVLLM, client: httpx.AsyncClient
) -> None:
    engine.adapters = {"old": "owner/old", "sql": "owner/sql"}
    states = await sync(engine, client, sql="owner/sql", law="/adapters/law")
    assert engine.adapters == {"sql": "owner/sql", "law": "/adapters/law"}
    assert [state.loaded for state in states.values()] == [True, True]
    assert engine.calls == [("unload", "old"), ("load", "law")]


async def test_nothing_is_called_where_nothing_differs(engine: FakeVLLM, client: httpx.AsyncClient) -> None:
    engine.adapters = {"sql": "owner/sql"}
    await sync(engine, client, sql="owner/sql")
    assert engine.calls == []


async def test_a_restarted_engine_gets_them_back(engine: FakeVLLM, client: httpx.AsyncClient) -> None:
    await sync(engine, client, sql="owner/sql")
    engine.restart()
    assert (await sync(engine, client, sql="owner/sql"))["sql"].loaded
    assert engine.adapters == {"sql": "owner/sql"}


async def test_a_changed_source_is_loaded_anew(engine: FakeVLLM, client: httpx.AsyncClient) -> None:
    engine.adapters = {"sql": "owner/sql"}
    assert (await sync(engine, client, sql="owner/sql-2"))["sql"].loaded
    assert engine.adapters == {"sql": "owner/sql-2"}


async def test_a_broken_one_is_told_and_keeps_no_other_from_loading(
    engine: FakeVLLM, client: httpx.AsyncClient
) -> None:
    engine.broken = {"owner/sql"}
    states = await sync(engine, client, sql="owner/sql", law="owner/law")
    assert states["law"].loaded
    assert states["sql"] == AdapterState(
        "sql", False, "the engine answered 404: Loading lora sql failed: No adapter found for owner/sql"
    )


async def test_a_success_that_the_list_does_not_show_is_none(engine: FakeVLLM, client: httpx.AsyncClient) -> None:
    engine.silent = {"owner/sql"}
    assert (await sync(engine, client, sql="owner/sql"))["sql"] == AdapterState(
        "sql", False, "the engine took it, but does not list it"
    )


async def test_a_slow_one_is_not_loaded_yet_and_is_found_next_time(
    engine: FakeVLLM, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater_operator.reconcile.adapter_sync._LOAD_SECONDS", 0.05)
    engine.slow = {"owner/sql"}
    state = (await sync(engine, client, sql="owner/sql"))["sql"]
    assert not state.loaded and "did not answer within 0.05 s" in state.message
    engine.adapters["sql"] = "owner/sql"  # the engine got done with it
    assert (await sync(engine, client, sql="owner/sql"))["sql"].loaded
    assert engine.calls == [("load", "sql")], "it is not loaded a second time"


async def test_an_engine_that_is_not_there_has_none(client: httpx.AsyncClient) -> None:
    with fake_vllm() as server:
        url = server.url
    states = await sync_adapters(VLLM, url, Wanted({"sql": "owner/sql"}, {"law": "no"}), client)
    assert [state.loaded for state in states] == [False, False]
    assert states[0].message == "no" and states[1].message.startswith("the engine cannot be reached")


async def test_a_server_that_was_started_with_them_is_changed_in_nothing(
    engine: FakeVLLM, client: httpx.AsyncClient
) -> None:
    want = Wanted({"owner/sql": "owner/sql"}, {})
    states = await sync_adapters(backends.get("tgi"), engine.url, want, client)
    assert states == [AdapterState("owner/sql", True)] and engine.calls == []


@pytest.mark.parametrize("body", ["[]", "{}", "nothing", '{"data": "x"}'])
async def test_a_list_that_is_none_is_told(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    async with httpx.AsyncClient(transport=transport) as client:
        (state,) = await sync_adapters(VLLM, "http://engine", Wanted({"sql": "owner/sql"}, {}), client)
    assert state == AdapterState("sql", False, "the engine's list of models is not one")


# What is wanted


def deployment(model: str, *sources: str) -> ModelDeployment:
    adapters = [{"name": f"a{n}", "source": source} for n, source in enumerate(sources)]
    spec: dict[str, Any] = {"model": {"source": model}, "backend": {"type": "vllm"}, "adapters": adapters}
    return ModelDeployment.model_validate(
        {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}, "spec": spec}
    )


def test_engines_are_told_a_name_on_the_hub_or_a_path_in_the_pod() -> None:
    sources = ["hf://owner/sql", "file:///adapters/law", "pvc://shelf/adapters/x"]
    assert wanted(deployment("pvc://shelf/base", *sources), VLLM) == Wanted(
        {"a0": "owner/sql", "a1": "/adapters/law", "a2": "/models/adapters/x"}, {}
    )


@pytest.mark.parametrize("source", ["pvc://other/x", "pvc://she/x", "s3://bucket/x", "oci://registry/x:1"])
def test_what_no_pod_can_reach_is_refused(source: str) -> None:
    refused = wanted(deployment("pvc://shelf/base", source), VLLM).refused
    assert refused["a0"].startswith(f"{source} is not within reach of the pods")


def test_a_backend_without_adapters_says_so() -> None:
    refused = wanted(deployment("hf://owner/base", "hf://owner/sql"), backends.get("headwater")).refused
    assert refused == {"a0": "the headwater backend knows no adapters"}


adapters = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["", "o/x", "o/y", "/x", "/y"]))


@given(adapters.map(lambda each: {name: path or "o/z" for name, path in each.items()}), adapters)
def test_after_the_plan_is_carried_out_nothing_is_left_to_do(wanted: dict[str, str], loaded: dict[str, str]) -> None:
    unload, load = plan(wanted, loaded)
    after = {name: path for name, path in loaded.items() if name not in unload}
    assert not after.keys() & set(load), "nothing is loaded twice"
    after |= {name: wanted[name] for name in load}
    assert after.keys() == wanted.keys()
    assert plan(wanted, after) == ([], [])


# What the status shows


def test_the_status_counts_replicas_and_gives_one_reason() -> None:
    good, bad = AdapterState("sql", True), AdapterState("sql", False, "no room")
    assert summarize([[good, AdapterState("law", True)], [bad], [bad]]) == [
        {"name": "law", "loaded": 1, "replicas": 1},
        {"name": "sql", "loaded": 1, "replicas": 3, "message": "no room"},
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"detail": [{"loc": ["body", "lora_path"], "msg": "Field required", "input": None}]}, "Field required"),
        ({"error": {"message": "no such adapter", "code": 404}}, "no such adapter"),
        ("<html>\n <h1>Bad Gateway</h1>\n</html>", "<html> <h1>Bad Gateway</h1> </html>"),
        ("", "no reason given"),
    ],
)
async def test_a_refusal_is_one_sentence(body: Any, told: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(422, json=body) if isinstance(body, dict) else httpx.Response(422, text=body)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        (state,) = await sync_adapters(VLLM, "http://engine", Wanted({"sql": "owner/sql"}, {}), client)
    assert state.message == f"the engine answered 422: {told}"
