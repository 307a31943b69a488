"""What the metrics page costs, how large it gets, and that it shows what was not to be noticed otherwise."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import generate_latest

from headwater.kubernetes import LOAD_METRICS
from headwater_router.gateway import pages
from headwater_router.gateway.metrics import RouterMetrics
from tests.router.gateway import STREAM, RunningGateway, gateway, until
from tests.router.streams import WORD, streaming
from tests.router.upstream import upstream


async def page(router: RunningGateway) -> str:
    router.router.pages.forget()
    return (await router.client.get("/metrics")).text


async def test_a_page_that_is_asked_for_all_the_time_takes_a_tenth_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = 0.0, 0

    def render(self: pages.Pages, now: float) -> bytes:
        nonlocal clock, made
        clock, made = clock + 2, made + 1
        return b"%d" % made

    async with upstream() as engine, gateway(engine) as router:
        monkeypatch.setattr(pages, "time", SimpleNamespace(monotonic=lambda: clock))
        monkeypatch.setattr(pages.Pages, "_render", render)
        while clock < 300:
            shown = (await router.client.get("/metrics")).text
            assert shown == str(made)
            clock += 1
    assert 2 * made <= 30
    assert made > 10, "it is made anew, too"


async def test_a_page_of_the_load_has_what_the_whole_one_says_of_it_and_nothing_else() -> None:
    async with upstream() as engine, gateway(engine) as router:
        await router.post(STREAM)
        whole, load = router.router.pages.prometheus(), router.router.pages.load()
    wanted = tuple(LOAD_METRICS)
    found = [line for line in load.body.decode().splitlines() if not line.startswith("#")]
    assert found
    assert found == [line for line in whole.body.decode().splitlines() if line.startswith(wanted)]


async def test_the_series_of_an_endpoint_that_is_gone_go(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with upstream() as leaving, upstream() as staying:
        leaving.answer = streaming(WORD, end=False)
        specs = [
            f"- {{url: '{each.url}', backend: vllm, name: {name}}}\n" for each, name in ((leaving, "a"), (staying, "b"))
        ]
        file.write_text("".join(specs))
        async with gateway(endpoint=[], endpoints_file=file, ready=2) as router:
            for _ in range(2):
                await router.post(STREAM)
            assert 'headwater_router_broken_answers_total{endpoint="a"}' in await page(router)
            file.write_text(specs[1])
            await until(lambda: len(router.router.fleet) == 1)
            shown = await page(router)
            assert 'endpoint="a"' not in shown
            assert 'endpoint="b"' in shown


def test_models_without_end_do_not_make_series_without_end() -> None:
    metrics = RouterMetrics()
    for number in range(100):
        metrics.of(f"adapter-{number}").output_tokens.inc()
    size = len(generate_latest(metrics.registry))
    for number in range(100, 3000):
        metrics.of(f"adapter-{number}").output_tokens.inc()
    shown = generate_latest(metrics.registry)
    assert len(shown) < 15 * size
    assert b'headwater_router_output_tokens_total{model="other"} 2000.0' in shown


async def test_a_loop_that_is_held_up_is_seen_by_all_who_ask() -> None:
    async with upstream() as engine, gateway(engine) as router:
        time.sleep(0.3)  # noqa: ASYNC251  # which is what is to be noticed
        for _ in range(2):
            assert await router.metric("headwater_router_loop_lag_seconds") >= 0.24


@pytest.mark.parametrize("told", [True, False])
async def test_who_answered_is_told_where_that_is_wanted(told: bool) -> None:
    async with upstream() as engine, gateway(engine, expose_endpoint=told) as router:
        engine.answer = streaming(WORD, b"data: [DONE]\n\n")
        for body in (STREAM, STREAM.replace(b'"stream":true,', b"")):
            headers = (await router.post(body)).headers
            assert ("x-headwater-endpoint" in headers) is told
            assert ("x-headwater-decision" in headers) is told
