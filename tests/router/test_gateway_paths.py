"""Further paths: responses go where they were made, forms name their model in a part, other servers have others."""

import pytest

from headwater_router.gateway.head import RequestHead
from tests.router.gateway import BODY, gateway
from tests.router.upstream import Exchange, upstream


async def test_a_response_goes_where_it_was_made() -> None:
    async def make(exchange: Exchange) -> None:
        await exchange.whole(b'{"id":"resp_1","output":[],"usage":{"input_tokens":3,"output_tokens":1}}')

    async with upstream() as a, upstream() as b, gateway(a, b) as router:
        a.answer = b.answer = make
        made = await router.post(b'{"model":"m","input":"hi"}', "/v1/responses")
        [maker] = [engine for engine in (a, b) if engine.exchanges]
        seen = dict(maker.probed)
        for _ in range(3):
            maker.pages[b"/v1/responses/resp_1"] = (200, b'{"id":"resp_1"}')
            assert (await router.client.get("/v1/responses/resp_1")).json() == {"id": "resp_1"}
        assert maker.probed[b"/v1/responses/resp_1"] == 3
        assert b"/v1/responses/resp_1" not in seen
        assert made.status_code == 200
        unknown = await router.client.get("/v1/responses/resp_2")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "response_not_found")


async def test_a_request_for_a_response_has_no_model_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    async def make(exchange: Exchange) -> None:
        await exchange.whole(b'{"id":"resp_1","output":[]}')

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = make
        await router.post(b'{"model":"m","input":"hi"}', "/v1/responses")
        of = RequestHead.of
        monkeypatch.setattr(RequestHead, "of", lambda head, endpoint, _, *others: of(head, endpoint, "theirs", *others))
        assert (await router.post(b"", "/v1/responses/resp_1/cancel")).status_code == 200
        assert engine.exchanges[-1].body == b""


async def test_a_form_names_its_model_in_a_part() -> None:
    async with upstream() as engine, gateway(engine) as router:
        files = {"file": ("a.wav", b"RIFF" * 100, "audio/wav")}
        answer = await router.client.post("/v1/audio/transcriptions", data={"model": "m"}, files=files)
        assert answer.status_code == 200
        refused = await router.client.post("/v1/audio/transcriptions", data={"model": "other"}, files=files)
        assert refused.json()["error"]["code"] == "model_not_found"
        assert len(engine.exchanges) == 1


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/rerank", "/score", "/v2/rerank"])
async def test_paths_of_other_servers_are_forwarded(path: str) -> None:
    async with upstream() as engine, gateway(engine) as router:
        assert (await router.post(BODY, path)).status_code == 200
        assert engine.exchanges[0].line == b"POST " + path.encode() + b" HTTP/1.1"
