"""Who opens the gateway's URL in a browser is told what it is, and nothing that a key is needed for."""

from pathlib import Path

import pytest

from headwater_router.gateway.front_page import front_page
from tests.router.gateway import gateway
from tests.router.upstream import upstream


async def test_it_names_what_is_served_and_a_request_that_works() -> None:
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "<li><code>m</code></li>" in answer.text
        assert f"curl http://127.0.0.1:{router.port}/v1/chat/completions" in answer.text
        assert (await router.client.post("/")).status_code == 405


async def test_without_a_key_it_names_no_model(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: [{name: a, key: sk-0123456789abcdef}]")
    async with upstream() as engine, gateway(engine, api_keys=keys) as router:
        answer = await router.client.get("/")
        assert answer.status_code == 200
        assert "<li>" not in answer.text
        assert "to those who have a key" in answer.text


@pytest.mark.parametrize("name", ["<script>", "a'b", '"', "&amp;"])
def test_no_name_becomes_a_part_of_the_page(name: str) -> None:
    page = front_page([name], "<b>").decode()
    assert "<script>" not in page and "<b>" not in page


def test_a_gateway_with_nothing_behind_it_says_so() -> None:
    assert b"None yet" in front_page([], "h")
