"""A client's key at the gateway: what it opens, what it keeps shut, and where it never goes."""

import json
from pathlib import Path

import pytest

from tests.router.gateway import BODY, error_of, gateway
from tests.router.upstream import Exchange, Upstream, upstream

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    entries = [
        {"name": "one", "key": KEY, "models": ["m"], "cache_salt": "own"},
        {"name": "two", "key": OTHER, "models": ["n"], "requests_per_minute": 2},
    ]
    file.write_text(json.dumps({"keys": entries}))
    return file


async def test_nothing_is_answered_without_a_key_but_health(keys: Path) -> None:
    async with upstream() as engine, gateway(engine, api_keys=keys) as router:
        for path in ("/v1/models", "/ready", "/metrics"):
            assert (await router.client.get(path)).status_code == 401
        assert error_of(await router.post())["code"] == "invalid_api_key"
        assert (await router.client.get("/health")).status_code == 200
        assert not engine.exchanges


async def test_a_key_goes_to_no_engine_and_brings_its_own_salt(keys: Path) -> None:
    async with upstream() as engine, gateway(engine, api_keys=keys) as router:
        for header in ({"authorization": f"Bearer {KEY}"}, {"x_api_key": KEY}):
            theirs = BODY.replace(b"{", b'{"cache_salt":"theirs",', 1)
            assert (await router.post(theirs, **header)).status_code == 200
        for exchange in engine.exchanges:
            assert not exchange.headers.keys() & {b"authorization", b"x-api-key"}
            assert KEY.encode() not in exchange.body
            assert json.loads(exchange.body)["cache_salt"] not in ("theirs", "", None)


async def test_a_model_of_others_is_neither_used_nor_seen(keys: Path) -> None:
    async with upstream("m", "n") as engine, gateway(engine, api_keys=keys) as router:
        mine = {"authorization": f"Bearer {KEY}"}
        listed = (await router.client.get("/v1/models", headers=mine)).json()["data"]
        assert [card["id"] for card in listed] == ["m"]
        for name in (b"n", b"nobody"):
            refused = await router.post(BODY.replace(b'"m"', b'"%b"' % name), **mine)
            assert (refused.status_code, error_of(refused)["code"]) == (403, "model_not_allowed")
            assert b"n`" not in refused.content.replace(b"`%b`" % name, b"")
        assert not engine.exchanges


async def test_a_limit_is_told_with_each_answer(keys: Path) -> None:
    async with upstream("m", "n") as engine, gateway(engine, api_keys=keys) as router:
        answers = [await router.post(BODY.replace(b'"m"', b'"n"'), x_api_key=OTHER) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert int(answers[2].headers["retry-after"]) >= 1
        assert len(engine.exchanges) == 2


async def test_a_limit_of_the_engines_own_does_not_stand_beside_it(keys: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(headers=b"X-RateLimit-Remaining-Requests: 9999\r\nx-ratelimit-limit-tokens: 5\r\n")

    async with upstream("m", "n") as engine, gateway(engine, api_keys=keys) as router:
        engine.answer = answer
        limited = await router.post(BODY.replace(b'"m"', b'"n"'), x_api_key=OTHER)
        assert limited.headers.get_list("x-ratelimit-remaining-requests") == ["1"]
        assert limited.headers["x-ratelimit-limit-tokens"] == "5"
        unlimited = await router.post(x_api_key=KEY)
        assert unlimited.headers.get_list("x-ratelimit-remaining-requests") == ["9999"]


async def test_a_response_is_its_keys_alone(tmp_path: Path) -> None:
    async def make(exchange: Exchange) -> None:
        await exchange.whole(b'{"id":"resp_42","output":[]}')

    def asked(engine: Upstream) -> int:
        return len(engine.exchanges) + engine.probed.get(b"/v1/responses/resp_42", 0)

    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": "a", "key": KEY}, {"name": "b", "key": OTHER}]}))
    own, other = {"x-api-key": KEY}, {"x-api-key": OTHER}
    path = "/v1/responses/resp_42"
    async with upstream() as engine, gateway(engine, api_keys=file) as router:
        engine.answer = make
        engine.pages[path.encode()] = (200, b'{"id":"resp_42","output":"theirs"}')
        ask = {"model": "m", "input": "hi"}
        assert (await router.client.post("/v1/responses", json=ask, headers=own)).status_code == 200
        # An engine that gives one id twice gives nobody else the first answer.
        assert (await router.client.post("/v1/responses", json=ask, headers=other)).status_code == 200
        before = asked(engine)
        going_on = [
            b'{"model":"m","input":"x","previous_response_id":"resp_42"}',
            b'{"model":"m","input":"x","previous_response_id":"resp_\\u00342"}',
            b'{"model":"m","input":"x","top_p":NaN,"previous_response_id":"resp_42"}',
        ]
        refused = [
            await router.client.get(path, headers=other),
            await router.client.delete(path, headers=other),
            await router.client.post(f"{path}/cancel", headers=other),
            await router.client.get(f"{path}/input_items", headers=other),
            *[await router.client.post("/v1/responses", content=body, headers=other) for body in going_on],
        ]
        assert [(each.status_code, error_of(each)["code"]) for each in refused] == [(404, "response_not_found")] * 7
        assert asked(engine) == before
        assert (await router.client.get(path, headers=own)).json()["output"] == "theirs"
        for body in going_on:
            assert (await router.client.post("/v1/responses", content=body, headers=own)).status_code == 200


async def test_a_response_that_is_not_certain_is_not_gone_on_from(keys: Path) -> None:
    body = b'{"model":"m","input":"x","top_p":NaN,"previous_response_id":"resp_NaN"}'
    async with upstream() as engine, gateway(engine, api_keys=keys) as router:
        answer = await router.post(body, "/v1/responses", x_api_key=KEY)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")
        assert not engine.exchanges


async def test_a_key_of_the_endpoint_goes_there_instead_of_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "engine-secret")
    async with upstream() as engine:
        endpoint = f"{engine.url},backend=vllm,api_key_env=ENGINE_KEY"
        async with gateway(endpoint=[endpoint], ready=1) as router:
            await router.post(authorization="Bearer client-secret")
            assert engine.exchanges[0].headers[b"authorization"] == b"Bearer engine-secret"
            assert b"client-secret" not in engine.exchanges[0].head


async def test_with_an_admin_port_clients_have_health_and_the_api_alone(tmp_path: Path) -> None:
    async with upstream() as engine, gateway(engine, admin_port=0) as router:
        for path in ("/metrics", "/ready", "/version", "/admin/endpoints"):
            assert (await router.client.get(path)).status_code == 404
        assert (await router.client.get("/health")).status_code == 200
        assert (await router.post()).status_code == 200
