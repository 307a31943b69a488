"""Requests that wait for a model to get ready: how many, for how long, in which order, and how they end."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from headwater.openai.errors import APIError, ServiceUnavailableError
from headwater_router.admission.hold import Hold


class Held:
    """A hold for models that are ready when the test says so."""

    def __init__(self, limit: int = 10, seconds: float = 600, most_bytes: int = 1000) -> None:
        self.ready: set[str] = set()
        self.ends: Counter[str] = Counter()
        self.order: list[str] = []
        self.hold = Hold(
            self.ready.__contains__,
            lambda outcome: self.ends.update([outcome]),
            limit=limit,
            seconds=seconds,
            most_bytes=most_bytes,
        )

    async def come(self, name: str, model: str = "m", deployment: str = "d", size: int = 1) -> asyncio.Task[None]:
        """A request that waits, or has been refused already."""

        async def request() -> None:
            await self.hold.wait(model, deployment, size, self.hold.seconds)
            self.order.append(name)

        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        return task

    def get_ready(self, model: str) -> None:
        self.ready.add(model)
        self.hold.check()


async def error_of(task: asyncio.Task[None]) -> APIError:
    with pytest.raises(ServiceUnavailableError) as caught:
        await task
    return caught.value


async def test_all_go_on_in_the_order_in_which_they_came() -> None:
    held = Held()
    tasks = [await held.come(str(number)) for number in range(5)]
    held.hold.check()
    assert held.hold.held["d"] == 5
    held.get_ready("m")
    await asyncio.gather(*tasks)
    assert held.order == ["0", "1", "2", "3", "4"]
    assert held.ends == {"sent": 5}
    assert held.hold.held["d"] == 0


async def test_only_the_model_that_is_ready_goes_on() -> None:
    held = Held()
    first, second = await held.come("first", "m", "d"), await held.come("second", "n", "e")
    held.get_ready("n")
    await second
    assert not first.done()
    assert (held.hold.held["d"], held.hold.held["e"]) == (1, 0)
    held.get_ready("m")
    await first


async def test_who_comes_after_the_others_went_on_waits_anew() -> None:
    held = Held()
    first = await held.come("first")
    held.get_ready("m")
    held.ready.clear()
    second = await held.come("second")
    await first
    held.hold.check()
    assert not second.done()
    held.get_ready("m")
    await second
    assert held.hold.held["d"] == 0


async def test_one_too_many_is_refused_at_once() -> None:
    held = Held(limit=2)
    waiting = [await held.come("a"), await held.come("b")]
    error = await error_of(await held.come("c"))
    assert (error.status, error.code, error.retry_after) == (503, "hold_full", 5)
    other = await held.come("d", "n", "another deployment")
    held.get_ready("m")
    held.get_ready("n")
    await asyncio.gather(*waiting, other)
    assert held.ends == {"full": 1, "sent": 3}


async def test_all_bodies_together_are_bounded_too() -> None:
    held = Held(most_bytes=100)
    waiting = await held.come("a", size=60)
    assert (await error_of(await held.come("b", "n", "e", size=60))).code == "hold_full"
    held.get_ready("m")
    await waiting
    after = await held.come("c", "n", "e", size=100)
    assert not after.done()
    held.get_ready("n")
    await after


async def test_in_the_end_it_says_that_nothing_got_ready() -> None:
    held = Held(seconds=0.001)
    error = await error_of(await held.come("a"))
    assert (error.status, error.code, error.retry_after) == (503, "no_endpoint_ready", 10)
    assert held.ends == {"late": 1}
    assert held.hold.held["d"] == 0


@pytest.mark.parametrize("then", [Held.get_ready, lambda held, _: held.hold.drain()], ids=["ready", "draining"])
async def test_who_leaves_is_let_go(then: Callable[[Held, str], None]) -> None:
    held = Held()
    leaving, staying = await held.come("leaving"), await held.come("staying")
    leaving.cancel()
    then(held, "m")  # before the task has noticed
    await asyncio.wait([leaving, staying])
    assert leaving.cancelled()
    assert held.ends["left"] == 1
    assert held.hold.held["d"] == 0


async def test_a_router_that_ends_sends_all_away() -> None:
    held = Held()
    waiting = [await held.come("a"), await held.come("b", "n", "e")]
    held.hold.drain()
    for task in (*waiting, await held.come("c")):
        error = await error_of(task)
        assert (error.status, error.code, error.retry_after) == (503, "draining", 1)
    assert held.ends == {"draining": 3}
