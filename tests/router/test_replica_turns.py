"""When a router tells the others, in virtual time."""

import asyncio
import itertools

import pytest

from benchmarks.virtual_clock import run
from headwater_router.replicas.turns import GATHER, Turns


@pytest.mark.parametrize(
    ("spoke", "sent_at", "next_at"),
    [
        pytest.param(False, 0.003, 0.003, id="a request after silence is told at once"),
        pytest.param(False, None, GATHER, id="what else there is to say waits no longer than it did"),
        pytest.param(True, 0.003, GATHER, id="requests that follow one another come together"),
    ],
)
def test_a_router_speaks(spoke: bool, sent_at: float | None, next_at: float) -> None:
    async def turn() -> float:
        loop, turns = asyncio.get_running_loop(), Turns()
        if sent_at is not None:
            loop.call_at(sent_at, turns.sent)
        await turns.next(spoke)
        return loop.time()

    assert run(turn()) == pytest.approx(next_at)


def test_it_speaks_no_more_often_than_once_in_the_time_that_messages_are_gathered() -> None:
    async def talk() -> list[float]:
        loop, turns, spoken = asyncio.get_running_loop(), Turns(), list[float]()

        async def send() -> None:
            while True:
                turns.sent()
                await asyncio.sleep(0.001)

        sender = asyncio.create_task(send())
        while loop.time() < 1.0:
            spoken.append(loop.time())
            await turns.next(True)
        sender.cancel()
        return spoken

    spoken = run(talk())
    assert min(after - before for before, after in itertools.pairwise(spoken)) >= GATHER * 0.999
