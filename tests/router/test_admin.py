"""The admin API: what it shows, what it does, and whom it answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from headwater.keys import hashed
from headwater_router.admin import guard
from headwater_router.admin.app import make_app
from headwater_router.admin.guard import Guard
from headwater_router.admin.shown import HIDDEN, shown_settings
from headwater_router.admission.keys import Keys
from headwater_router.config import RouterSettings
from headwater_router.endpoints.breaker import BreakerState
from tests.router.controls import BreakerInfo, FakeControls, FakePages, decision, endpoint, failure, load

KEY = "sk-admin-0123456789"
CLIENT = "sk-client-0123456789"
PAGES = FakePages()
API = ("/admin/endpoints", "/admin/models", "/admin/decisions", "/admin/failures", "/admin/settings", "/admin/keys")


@pytest.fixture
def controls() -> FakeControls:
    return FakeControls()


def client(
    controls: FakeControls, *, keys: Keys | None = None, clients: Keys | None = None, loopback: bool = True, **sent: str
) -> httpx.AsyncClient:
    settings = RouterSettings(endpoint=["http://a:1"], redis_url="redis://:secret@redis:6379")
    app = make_app(PAGES, controls, settings, clients, Guard(keys, loopback=loopback))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {name.replace("_", "-"): value for name, value in sent.items()}
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090", headers=headers)


@pytest.fixture
async def admin(controls: FakeControls) -> AsyncIterator[httpx.AsyncClient]:
    async with client(controls) as asking:
        yield asking


@pytest.fixture
def admin_keys(tmp_path: Path) -> Keys:
    path = tmp_path / "admin.yaml"
    path.write_text(yaml.safe_dump({"keys": [{"name": "ops", "key": KEY, "requests_per_minute": 1000}]}))
    return Keys(path)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    (content,) = answer.json().values()
    assert set(content) == {"message", "type", "param", "code"}
    return dict(content)


# What it shows


async def test_endpoints_are_shown_with_all_that_is_known(admin: httpx.AsyncClient) -> None:
    first, second = (await admin.get("/admin/endpoints")).json()
    assert second["name"] == "b"
    assert first == {
        "id": "uid-1",
        "name": "a",
        "url": "http://a:8000",
        "backend": "vllm",
        "deployment": "",
        "models": ["m"],
        "state": "ready",
        "ready": True,
        "reason": "",
        "accepting": True,
        "cordoned": False,
        "breaker": {"state": "closed", "ejections": 0, "error_share": 0.0},
        "speed": {
            "samples": 5,
            "factor": 1.0,
            "seconds_per_step": 0.02,
            "seconds_per_token": 1e-4,
            "seconds_per_answer": 0.01,
        },
        "load": {
            "in_flight": 0,
            "penalty": 0,
            "prefill_tokens": 0,
            "reported_running": 1,
            "reported_waiting": None,
            "reported_cache_usage": 0.5,
        },
        "places": 64,
        "full": False,
        "cached_blocks": 12,
        "ranks": [],
    }


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "ready"),
        ({"breaker": BreakerInfo(state=BreakerState.OPEN, ejections=1, error_share=0.5)}, "ejected"),
        ({"breaker": BreakerInfo(state=BreakerState.HALF_OPEN, ejections=1, error_share=0.5)}, "ready"),
        ({"ready": False, "reason": "nobody listens"}, "not_ready"),
        ({"accepting": False, "ready": False}, "leaving"),
        ({"cordoned": True, "accepting": False}, "cordoned"),
    ],
)
def test_the_state_is_the_first_reason_to_send_nothing(fields: dict[str, Any], state: str) -> None:
    assert endpoint("1", "a", **fields).state == state


async def test_records_are_shown_newest_first_and_as_many_as_asked_for(
    admin: httpx.AsyncClient, controls: FakeControls
) -> None:
    controls.recent_decisions = [decision(n) for n in range(300)]
    controls.recent_failures = [failure(n) for n in range(3)]
    assert len((await admin.get("/admin/decisions")).json()) == 50
    shown = (await admin.get("/admin/decisions?limit=200")).json()
    assert [each["request_id"] for each in shown] == [str(n) for n in range(299, 99, -1)]
    assert shown[0]["label"] == "exact"
    assert shown[0]["candidates"] == [
        {"endpoint": "a", "rank": None, "cached_tokens": 64, "predicted_ttft": 0.01, "in_flight": 1, "penalty": 0},
        {"endpoint": "b", "rank": 1, "cached_tokens": 0, "predicted_ttft": None, "in_flight": 0, "penalty": 2},
    ]
    failures = (await admin.get("/admin/failures")).json()
    assert [each["request_id"] for each in failures] == ["2", "1", "0"]
    assert failures[0] | {"time": 0, "request_id": ""} == {
        "time": 0, "request_id": "", "key": "", "model": "m", "endpoint": "a", "outcome": "lost",
        "reason": "Connection reset by peer",
    }  # fmt: skip
    for limit in ("0", "201", "x", "-1"):
        answer = await admin.get(f"/admin/decisions?limit={limit}")
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "limit"


async def test_models_are_shown(admin: httpx.AsyncClient) -> None:
    (shown,) = (await admin.get("/admin/models")).json()
    assert (shown["name"], shown["deployments"], shown["ready_endpoints"]) == ("m", ["ns/m"], 1)


async def test_keys_are_shown_without_what_lets_somebody_in(controls: FakeControls, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    entry = {"models": ["m", "ns/*"], "requests_per_minute": 5, "max_concurrent": 2, "cache_salt": "own"}
    path.write_text(yaml.safe_dump({"keys": [{"name": "team-a", "key": CLIENT, **entry}]}))
    clients = Keys(path)
    clients.admit("/v1/completions", [(b"x-api-key", CLIENT.encode())], 1e9)
    async with client(controls, clients=clients) as asking:
        text = (await asking.get("/admin/keys")).text
    shown = json.loads(text)
    assert (shown["checked"], shown["refused"]) == (True, None)
    assert shown["keys"] == [
        {
            "name": "team-a",
            "disabled": False,
            "models": ["m", "ns/*"],
            "requests_per_minute": 5,
            "requests_left": shown["keys"][0]["requests_left"],
            "max_concurrent": 2,
            "running": 1,
            "own_cache_salt": True,
            "admitted": 1,
            "refused_rate": 0,
            "refused_concurrency": 0,
            "refused_model": 0,
        }
    ]
    (key, _) = next(iter(clients))
    for secret in (CLIENT, hashed(CLIENT), key.digest.hex(), key.cache_salt):
        assert secret not in text


async def test_without_keys_of_clients_that_is_said(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/admin/keys")).json() == {"checked": False, "refused": None, "keys": []}


async def test_settings_are_shown_without_secrets(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/admin/settings")
    shown = answer.json()
    assert shown.keys() == RouterSettings.model_fields.keys()
    assert shown["redis_url"] == HIDDEN
    assert "secret" not in answer.text
    assert shown["max_attempts"] == 3


@pytest.mark.parametrize("field", list(RouterSettings.model_fields))
def test_a_secret_is_hidden_in_whatever_setting_it_is_put(field: str) -> None:
    kind = RouterSettings.model_fields[field].annotation
    for text in ("http://user:s3cret@host:1", "redis://:s3cret@host", "http://h:1,api_key=s3cret,name=a"):
        value: Any = [text] if kind == list[str] else text
        settings = RouterSettings.model_construct(**{field: value})
        assert "s3cret" not in json.dumps(shown_settings(settings), default=str)


# What it does


async def test_an_endpoint_is_cordoned_and_uncordoned(admin: httpx.AsyncClient, controls: FakeControls) -> None:
    answer = await admin.post("/admin/endpoints/a/cordon")
    assert (answer.status_code, answer.json()["state"]) == (200, "cordoned")
    assert (await admin.post("/admin/endpoints/uid-1/uncordon")).json()["state"] == "ready"
    assert controls.done == [("cordon", "uid-1", True), ("cordon", "uid-1", False)]


async def test_an_endpoint_is_ejected_and_reset(admin: httpx.AsyncClient, controls: FakeControls) -> None:
    await admin.post("/admin/endpoints/b/eject")
    await admin.post("/admin/endpoints/b/eject?seconds=5.5")
    await admin.post("/admin/endpoints/b/reset")
    assert controls.done == [("eject", "uid-2", 30), ("eject", "uid-2", 5.5), ("reset", "uid-2")]
    for seconds in ("0", "-1", "nan", "inf", "1e9", "x"):
        assert (await admin.post(f"/admin/endpoints/b/eject?seconds={seconds}")).status_code == 400
    assert len(controls.done) == 3


async def test_a_drain_says_when_nothing_runs_any_more(admin: httpx.AsyncClient, controls: FakeControls) -> None:
    controls.change("uid-1", load=load(2))
    first = (await admin.post("/admin/endpoints/a/drain")).json()
    assert (first["drained"], first["endpoint"]["load"]["in_flight"]) == (False, 2)
    waiting = asyncio.create_task(admin.post("/admin/endpoints/a/drain?wait=600"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    controls.change("uid-1", load=load(0))
    last = (await asyncio.wait_for(waiting, 60)).json()
    assert (last["drained"], last["endpoint"]["state"]) == (True, "cordoned")


async def test_an_endpoint_that_goes_during_a_drain_ends_it(admin: httpx.AsyncClient, controls: FakeControls) -> None:
    controls.change("uid-1", load=load(2))
    waiting = asyncio.create_task(admin.post("/admin/endpoints/a/drain?wait=600"))
    await asyncio.sleep(0.01)
    del controls.known["uid-1"]
    assert (await asyncio.wait_for(waiting, 60)).status_code == 404


async def test_of_two_endpoints_of_one_name_nothing_is_guessed(
    admin: httpx.AsyncClient, controls: FakeControls
) -> None:
    controls.known["uid-3"] = endpoint("uid-3", "a")
    controls.known["http://c:1"] = endpoint("http://c:1", "b/c")
    answer = await admin.post("/admin/endpoints/a/cordon")
    assert answer.status_code == 400
    assert "uid-1, uid-3" in error_of(answer)["message"]
    assert controls.done == []
    assert (await admin.post("/admin/endpoints/uid-3/cordon")).json()["id"] == "uid-3"
    assert (await admin.post("/admin/endpoints/http%3A%2F%2Fc%3A1/cordon")).json()["id"] == "http://c:1"
    assert (await admin.post("/admin/endpoints/b/c/uncordon")).json()["id"] == "http://c:1"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/admin/endpoints/none/cordon", 404),
        ("POST", f"/admin/endpoints/{'x' * 600}/cordon", 400),
        ("POST", "/admin/endpoints/%00%ff/cordon", 404),
        ("POST", "/admin/endpoints/a/explode", 404),
        ("GET", "/admin/endpoints/a/cordon", 405),
        ("POST", "/admin/endpoints", 405),
        ("OPTIONS", "/admin/endpoints", 405),
        ("GET", "/admin", 404),
        ("GET", "/v1/models", 404),
    ],
)
async def test_errors_have_the_shape_of_all_others(
    method: str, path: str, status: int, admin: httpx.AsyncClient
) -> None:
    answer = await admin.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["message"]


async def test_our_own_failure_is_told_without_its_details(controls: FakeControls) -> None:
    controls.endpoints = lambda: 1 / 0  # type: ignore[assignment,return-value,method-assign]
    async with client(controls) as asking:
        answer = await asking.get("/admin/endpoints")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert error_of(answer)["type"] == "server_error"


# Probes, and the page


async def test_probes_are_answered(admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await admin.get("/health")).json() == {"status": "ok"}
    assert (await admin.get("/version")).json() == {"version": "1.2.3"}
    assert (await admin.get("/ready")).json() == {"status": "ready"}
    metrics = await admin.get("/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=1.0.0"
    assert metrics.content == PAGES.prometheus().body
    load, more = "headwater_router_deployment_held", "headwater_router_redis_connected"
    assert (await admin.get("/metrics", params={"name[]": [load]})).content == PAGES.load().body
    assert (await admin.get("/metrics", params={"name[]": [load, more]})).content == PAGES.prometheus().body
    monkeypatch.setattr(PAGES, "status", 503)
    assert (await admin.get("/ready")).status_code == 503


async def test_the_api_describes_itself(admin: httpx.AsyncClient) -> None:
    assert "swagger" in (await admin.get("/docs")).text
    described = (await admin.get("/openapi.json")).json()
    assert set(API) <= described["paths"].keys()
    for name, schema in described["components"]["schemas"].items():
        assert name.startswith(("HTTPValidationError", "ValidationError")) or schema.get("properties") or schema["enum"]
    load_fields = described["components"]["schemas"]["LoadInfo"]["properties"]
    assert load_fields["penalty"]["description"] == "Requests that it turned down or failed lately."
    assert described["paths"]["/admin/settings"]["get"]["security"]
    assert "security" not in described["paths"]["/ready"]["get"]


# Whom it answers


@pytest.mark.parametrize("path", API)
async def test_with_keys_only_who_has_one_is_answered(path: str, controls: FakeControls, admin_keys: Keys) -> None:
    for loopback in (True, False):
        async with client(controls, keys=admin_keys, loopback=loopback) as asking:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": CLIENT}):
                answer = await asking.get(path, headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"].startswith("Bearer")
            answer = await asking.get(path, headers={"authorization": f"Bearer {KEY}", "host": "router.example"})
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "1000"
            assert (await asking.get(path, headers={"x-api-key": KEY})).status_code == 200
    assert [use.running for _, use in admin_keys] == [0]


async def test_a_key_is_asked_for_before_anything_is_done_or_told(controls: FakeControls, admin_keys: Keys) -> None:
    async with client(controls, keys=admin_keys) as asking:
        for path in ("a/cordon", "none/cordon", "a/eject?seconds=x"):
            assert (await asking.post(f"/admin/endpoints/{path}")).status_code == 401
    assert controls.done == []


async def test_who_changes_something_is_on_record(controls: FakeControls, admin_keys: Keys, monkeypatch) -> None:
    told: list[tuple[str, str, str]] = []
    monkeypatch.setattr(guard.log, "info", lambda _, path, key, client: told.append((path, key, client)), raising=False)
    async with client(controls, keys=admin_keys, x_api_key=KEY) as asking:
        await asking.get("/admin/endpoints")
        await asking.post("/admin/endpoints/a/cordon")
    assert told == [("/admin/endpoints/a/cordon", "ops", "127.0.0.1")]


async def test_without_keys_other_machines_are_not_answered(controls: FakeControls) -> None:
    async with client(controls, loopback=False) as asking:
        for path in API:
            answer = await asking.get(path, headers={"host": "localhost"})
            assert (answer.status_code, error_of(answer)["code"]) == (403, "admin_closed")
        assert (await asking.post("/admin/endpoints/a/cordon")).status_code == 403
        for path in ("/ready", "/metrics", "/version", "/health", "/docs"):
            assert (await asking.get(path)).status_code == 200
    assert controls.done == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:9090"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "127.8.8.8:1"}, 200),
        ({"host": "[::1]:9090"}, 200),
        ({"origin": "http://127.0.0.1:9090", "sec-fetch-site": "same-origin"}, 200),
        ({"host": "attacker.example"}, 403),
        ({"host": "attacker.example:9090", "origin": "http://attacker.example:9090"}, 403),
        ({"host": "127.0.0.1.attacker.example"}, 403),
        ({"host": "127.0.0.1@attacker.example"}, 403),
        ({"host": "localhost.attacker.example"}, 403),
        ({"host": "10.0.0.1"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
async def test_without_keys_pages_of_other_sites_are_not_answered(
    headers: dict[str, str], status: int, controls: FakeControls, admin: httpx.AsyncClient
) -> None:
    answer = await admin.post("/admin/endpoints/a/cordon", headers=headers)
    assert answer.status_code == status
    assert bool(controls.done) == (status == 200)
