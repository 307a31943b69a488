"""Pages of other origins: they may ask and read where the settings say so, and nowhere else."""

from typing import Any

import pytest

from headwater.http.connection import ClientConnection
from headwater.http.cors import Cors
from headwater.http.request import Head, Request
from headwater.openai.errors import RateLimitError
from tests.router.front import Counted, front, read_answer
from tests.router.gateway import BODY, CHAT, gateway
from tests.router.upstream import Exchange, upstream

CHAT_PAGE = "https://chat.example"
ASK = {
    "origin": CHAT_PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}


@pytest.mark.parametrize(("origins", "allowed"), [(["*"], "*"), (["https://a.example", CHAT_PAGE + "/"], CHAT_PAGE)])
async def test_a_browser_is_told_that_a_page_may_ask(origins: list[str], allowed: str) -> None:
    async with upstream() as engine, gateway(engine, cors_origin=origins) as router:
        answer = await router.client.options(CHAT, headers=ASK)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == allowed
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
        assert not engine.exchanges
        asked = await router.post(origin=CHAT_PAGE)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, allowed)
        assert "x-request-id" in asked.headers["access-control-expose-headers"]
        wrong = await router.post(b"no JSON", origin=CHAT_PAGE)
        assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, allowed)


async def test_pages_of_other_origins_are_told_nothing() -> None:
    async with upstream() as engine, gateway(engine, cors_origin=[CHAT_PAGE]) as router:
        for origin in ("https://evil.example", "null", CHAT_PAGE + ".evil.example"):
            answer = await router.client.options(CHAT, headers=ASK | {"origin": origin})
            assert answer.status_code == 405
            assert "access-control-allow-origin" not in answer.headers
            asked = await router.post(origin=origin)
            assert "access-control-allow-origin" not in asked.headers
            assert asked.headers["vary"] == "origin"


async def test_without_the_option_there_is_no_word_of_it() -> None:
    async with upstream() as engine, gateway(engine) as router:
        assert (await router.client.options(CHAT, headers=ASK)).status_code == 405
        answer = await router.post(origin=CHAT_PAGE)
        assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


async def test_what_an_engine_says_of_it_does_not_stand_beside_it() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(headers=b"access-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n")

    async with upstream() as engine, gateway(engine, cors_origin=[CHAT_PAGE]) as router:
        engine.answer = answer
        got = await router.post(BODY, origin=CHAT_PAGE)
        assert got.headers.get_list("access-control-allow-origin") == [CHAT_PAGE]
        assert "access-control-allow-credentials" not in got.headers


@pytest.mark.parametrize("origins", [[], [CHAT_PAGE]])
async def test_an_engine_cannot_open_the_answers_to_pages(origins: list[str]) -> None:
    own = ("allow-origin", "allow-credentials", "allow-headers", "allow-methods", "allow-private-network",
           "expose-headers", "max-age")  # fmt: skip

    async def answer(exchange: Exchange) -> None:
        await exchange.whole(headers="".join(f"Access-Control-{name}: *\r\n" for name in own).encode())

    async with upstream() as engine, gateway(engine, cors_origin=origins) as router:
        engine.answer = answer
        got = await router.post(BODY, origin="https://evil.example")
        assert got.status_code == 200
        assert not [name for name in got.headers if name.startswith("access-control")]


async def test_a_browser_needs_no_key_to_ask_whether_it_may() -> None:
    def nobody(head: Head) -> RateLimitError:
        return RateLimitError("no")

    settings: dict[str, Any] = {"admit": Counted(nobody), "cors": Cors([CHAT_PAGE])}
    async with front(**settings) as running:
        reader, writer = await running.connect()
        lines = [f"{name}: {value}\r\n" for name, value in ASK.items()]
        writer.write(f"OPTIONS {CHAT} HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        assert not running.requests
        writer.write(f"POST {CHAT} HTTP/1.1\r\norigin: {CHAT_PAGE}\r\n\r\n".encode())
        status, headers, _ = await read_answer(reader)
        assert (status, headers["access-control-allow-origin"]) == (429, CHAT_PAGE)


async def test_an_options_request_that_asks_for_no_page_is_one_like_any_other() -> None:
    async def handle(request: Request, client: ClientConnection) -> None:
        client.answer(405, [], b"")

    async with front(handle, cors=Cors(["*"])) as running:
        reader, writer = await running.connect()
        writer.write(b"OPTIONS /x HTTP/1.1\r\n\r\n")
        assert (await read_answer(reader))[0] == 405
