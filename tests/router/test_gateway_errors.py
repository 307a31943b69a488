"""Bad requests get a clear error in OpenAI's shape, and nothing goes upstream."""

import asyncio
import json

import pytest

from tests.router.gateway import BODY, CHAT, error_of, gateway
from tests.router.upstream import upstream


async def test_an_unknown_model_is_a_404_that_names_those_that_are_there() -> None:
    async with upstream("m", "n") as engine, gateway(engine) as router:
        answer = await router.post(BODY.replace(b'"m"', b'"other"'))
        assert answer.status_code == 404
        error = error_of(answer)
        assert error["code"] == "model_not_found"
        assert "other" in str(error["message"])
        assert "m" in str(error["message"])
        assert not engine.exchanges


async def test_a_model_whose_endpoints_are_not_ready_is_a_503_that_says_when_to_come_back() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.pages[b"/health"] = (503, b"{}")
        await router.until_ready(0)
        answer = await router.post()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "no_endpoint_ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert not engine.exchanges


@pytest.mark.parametrize("body", [b"", b"{", b'"text"', b"[1]", b'{"model":"m"', b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_a_400(body: bytes) -> None:
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.post(body)
        assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")
        assert not engine.exchanges


@pytest.mark.parametrize("model", [7, [], {}, True, ""])
async def test_a_model_that_is_no_name_is_a_400_that_says_so(model: object) -> None:
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.post(json.dumps({"model": model, "messages": []}).encode())
        assert (answer.status_code, error_of(answer)["param"]) == (400, "model")
        assert not engine.exchanges


async def test_a_request_without_a_model_is_a_400_where_there_are_several() -> None:
    async with upstream("m", "n") as engine, gateway(engine) as router:
        answer = await router.post(b'{"messages":[]}')
        assert (answer.status_code, error_of(answer)["param"]) == (400, "model")


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body_is_a_413(chunked: bool) -> None:
    async def pieces():  # type: ignore[no-untyped-def]
        for _ in range(40):
            yield b"x" * 4096

    async with upstream() as engine, gateway(engine, max_body_mib=0.1) as router:
        content = pieces() if chunked else b"x" * 40 * 4096
        answer = await router.client.post(CHAT, content=content)
        assert answer.status_code == 413
        error_of(answer)
        assert not engine.exchanges


async def test_too_large_a_head_is_a_431() -> None:
    async with upstream() as engine, gateway(engine, max_header_kib=4) as router:
        answer = await router.post(BODY, x_long="x" * 8192)
        assert answer.status_code == 431
        error_of(answer)
        assert (await router.post()).status_code == 200


async def test_a_head_without_an_end_is_cut_off() -> None:
    async with upstream() as engine, gateway(engine, max_header_kib=4) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nx-long: " + b"x" * 16384)
        assert b" 431 " in await reader.read()
        assert not engine.exchanges


async def test_a_wrong_method_is_a_405() -> None:
    async with upstream() as engine, gateway(engine) as router:
        for method, path in (("GET", CHAT), ("PUT", CHAT), ("POST", "/metrics"), ("DELETE", "/v1/models/m")):
            answer = await router.client.request(method, path)
            assert answer.status_code == 405
            error_of(answer)


async def test_an_unknown_path_is_a_404() -> None:
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.client.post("/v1/nothing", content=BODY)
        assert answer.status_code == 404
        error_of(answer)


async def test_a_connection_is_of_use_after_an_error() -> None:
    async with upstream() as engine, gateway(engine) as router:
        for _ in range(3):
            assert (await router.post(b"{")).status_code == 400
            assert (await router.post()).status_code == 200
        assert len(engine.exchanges) == 3


async def test_what_is_not_http_is_refused() -> None:
    async with upstream() as engine, gateway(engine) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not http\r\n\r\n")
        assert b" 400 " in await reader.read()
        assert (await router.post()).status_code == 200
