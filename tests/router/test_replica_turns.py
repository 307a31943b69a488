"""When a router tells the others, in virtual time."""

import asyncio

import pytest

from benchmarks.virtual_clock import run
from headwater_router.replicas.turns import AT_ONCE, GATHER, Turns


@pytest.mark.parametrize("spoke", [False, True])
@pytest.mark.parametrize(
    ("happens_at", "next_at"),
    [
        pytest.param(0.003, 0.003, id="what happens to a request is told at once"),
        pytest.param(None, GATHER, id="what else there is to say waits a little"),
    ],
)
def test_a_router_speaks(spoke: bool, happens_at: float | None, next_at: float) -> None:
    async def turn() -> float:
        loop, turns = asyncio.get_running_loop(), Turns()
        if happens_at is not None:
            loop.call_at(happens_at, turns.happened)
        await turns.next(spoke)
        return loop.time()

    assert run(turn()) == pytest.approx(next_at)


def test_where_much_happens_it_speaks_no_more_often_than_once_in_the_time_that_messages_are_gathered() -> None:
    async def talk() -> list[float]:
        loop, turns, spoken = asyncio.get_running_loop(), Turns(), list[float]()

        async def happen() -> None:
            while True:
                turns.happened()
                await asyncio.sleep(0.001)

        sender = asyncio.create_task(happen())
        while loop.time() < 1.0:
            spoken.append(loop.time())
            await turns.next(True)
        sender.cancel()
        return spoken

    spoken = run(talk())
    gathered = [after - before for before, after in zip(spoken[AT_ONCE:], spoken[AT_ONCE + 1 :], strict=False)]
    assert len(spoken) <= 1.0 / GATHER + AT_ONCE + 1
    assert sum(gathered[10:]) / len(gathered[10:]) == pytest.approx(GATHER, rel=0.1)
