"""What deciding costs for each request, counted in calls of functions: unlike times, they are the same on any machine.

The path of a request through the dispatcher grows with each feature, by too little for any benchmark to see at once.
Whoever needs more calls than stand here finds some to save, or raises the number and says in the commit what for.
"""

import sys
from collections import Counter
from types import FrameType

import pytest

from headwater_router.dispatch.call import Call
from headwater_router.gateway.usage import Usage
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Prompt
from tests.router.dispatching import MODEL, Dispatching

_WARM = 600
"""Requests after which costs are known, and but each fourth answer teaches them."""
_COUNTED = 400


async def take(dispatching: Dispatching, number: int, streamed: bool) -> None:
    """One of sixteen applications asks something of its own, and is answered."""
    chain = [number % 16 * 100 + place for place in range(4)] + [10_000 + 10 * number + place for place in range(4)]
    prompt = Prompt("m", chain, 500, streamed=streamed)
    call = Call("/v1/chat/completions", b"{}", "m", MODEL, prompt, None, dispatching.now)
    dispatch = await dispatching.dispatcher.choose(call)
    dispatch.answered(200)
    if streamed:
        dispatching.now += 0.001
    dispatch.first_token(dispatching.now)
    dispatching.now += 0.01
    dispatch.ended(Outcome.ANSWERED, dispatching.now, usage=Usage(500, 100, 64))
    dispatching.dispatcher.close(call, dispatching.now, Outcome.UNSENT)


@pytest.mark.parametrize(("streamed", "most"), [(False, 138), (True, 162)])
async def test_a_request_takes_no_more_calls_than_it_did(streamed: bool, most: int) -> None:
    dispatching = Dispatching(64, "prefix")
    for number in range(_WARM):
        await take(dispatching, number, streamed)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}"] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for number in range(_WARM, _WARM + _COUNTED):
            await take(dispatching, number, streamed)
    finally:
        sys.setprofile(before)
    each = "\n".join(f"{name} {called / _COUNTED:.2f}" for name, called in calls.most_common())
    assert calls.total() / _COUNTED <= most, each
