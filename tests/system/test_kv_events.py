"""Engines tell routers what their caches hold, also one that comes late."""

import random
from pathlib import Path

import httpx

from tests.system.conftest import MODEL, Server, Stack, routing, wait_until

PROMPT = random.Random(11).choices(range(1000, 40_000), k=410)
"""As token ids, which is what events speak of."""


def complete(router: Server) -> tuple[str, str, int]:
    """Endpoint, decision, and cached prompt tokens."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1}
    answer = httpx.post(f"{router.url}/v1/completions", json=body, timeout=120).raise_for_status()
    cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer.headers["x-headwater-endpoint"], answer.headers["x-headwater-decision"], cached


def test_a_router_that_comes_late_knows_what_was_cached_before(stack: Stack, tmp_path: Path) -> None:
    first, _, cached = complete(stack.router)
    assert cached == 0
    with routing(tmp_path, stack.endpoints) as late:
        wait_until(lambda: late.metric("headwater_router_index_entries") > 0, "the late router was told")
        # It has sent nothing yet, so all that it knows it knows from events.
        wait_until(
            lambda: (
                late.metric("headwater_router_index_entries")
                == stack.router.metric('headwater_router_index_entries{source="kv_events"}')
            ),
            "both routers know the same blocks",
        )
        assert complete(late) == (first, "exact", 400)
        assert late.metric("headwater_router_predicted_cached_tokens_total") == 400
    assert complete(stack.router) == (first, "exact", 400)
