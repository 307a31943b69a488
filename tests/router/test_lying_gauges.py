"""Whatever an engine's metrics page says, requests are sent somewhere, and nothing that was said stays for ever."""

import math
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import backends
from headwater.backends.metrics import read_load
from headwater_router.endpoints import probe
from headwater_router.endpoints.probe import _store_load
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.targets import Targets
from tests.router.gateway import gateway, until
from tests.router.upstream import upstream

NUMBERS = st.sampled_from(
    ["0", "3", "0.5", "-1", "1e15", "9e15", "1e200", "1.7e308", "-1.7e308", "NaN", "+Inf", "x", ""]
)
VLLM = backends.get("vllm").metrics


def page(running: str, waiting: str, usage: str, blocks: str, size: str, seconds: str, tokens: str) -> str:
    """Of two data-parallel engines that say the same."""
    return "".join(
        f'vllm:num_requests_running{{engine="{rank}"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="{rank}"}} {waiting}\n'
        f'vllm:kv_cache_usage_perc{{engine="{rank}"}} {usage}\n'
        f'vllm:cache_config_info{{block_size="{size}",engine="{rank}",num_gpu_blocks="{blocks}"}} 1\n'
        f'vllm:inter_token_latency_seconds_sum{{engine="{rank}"}} {seconds}\n'
        f'vllm:inter_token_latency_seconds_count{{engine="{rank}"}} {tokens}\n'
        for rank in range(2)
    )


HONEST = page("2", "0", "0.2", "1000", "16", "10", "500")
pages = st.builds(page, *[NUMBERS] * 7)


@given(st.lists(pages, max_size=6))
def test_each_request_is_sent_somewhere_and_what_is_predicted_is_a_number(told: list[str]) -> None:
    picker, targets = PrefixPicker(PrefixIndex(), random.Random(1)), Targets([Target("liar"), Target("honest")])
    now = 0.0
    for number, each in enumerate([HONEST, *told, HONEST]):
        for target, text in zip(targets.all, (each, HONEST), strict=True):
            try:
                _store_load(target, read_load(text, VLLM))
            except ValueError:
                continue
        for turn in range(3):
            decision = picker.pick(Prompt("m", [10 * number + turn], 400), targets, now)
            assert math.isfinite(decision.taken())
            assert math.isfinite(decision.predicted_ttft or 0.0)
            picker.first_token(decision, now + 0.1)
            now += 1
            picker.finished(decision, now, Outcome.ANSWERED, output_tokens=30)
    assert all(0 < speed.factor < 100 for name in ("liar", "honest") if (speed := picker.speed(name)) is not None)


@pytest.mark.parametrize("lie", [page(*["1.7e308"] * 7), page(*["1e200"] * 7), page(*["-1.7e308"] * 7)])
async def test_an_engine_that_tells_nonsense_ends_no_request_and_no_page(lie: str) -> None:
    async with upstream() as engine, upstream() as other:
        engine.serve_metrics(lie)
        other.serve_metrics(HONEST)
        async with gateway(engine, other, policy="prefix") as router:
            await until(lambda: min(each.probed.get(b"/metrics", 0) for each in (engine, other)) > 1)
            answers = [await router.post() for _ in range(10)]
            assert {answer.status_code for answer in answers} == {200}
            assert (await router.client.get("/metrics")).status_code == 200


async def test_a_long_page_is_gone_through_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    here, asked = threading.current_thread(), []

    class Noted:
        def search(self, page: str) -> None:
            asked.append((len(page), threading.current_thread() is here))

    monkeypatch.setattr(probe, "_PROCESS_START", Noted())
    async with upstream() as engine, upstream() as other:
        engine.serve_metrics("x 1\n" * 50_000)
        other.serve_metrics(HONEST)
        async with gateway(engine, other):
            await until(lambda: len({size for size, _ in asked}) == 2)
    assert all(on_the_loop == (size == len(HONEST)) for size, on_the_loop in asked)
