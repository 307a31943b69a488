"""One workload through one policy: builds the fleet, lets the clients send, and gives what they saw."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from benchmarks.fleet.channel import Channel, Link
from benchmarks.fleet.engine import Engine
from benchmarks.fleet.hardware import H100_8B, Hardware
from benchmarks.fleet.ranks import Ranks
from benchmarks.fleet.requests import Request
from benchmarks.fleet.router import PROBE_SECONDS, Record, Router
from benchmarks.virtual_clock import VirtualLoop, run
from headwater_router.picker.policies import Policies

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

_PATIENCE: Final = 3600.0
"""Seconds after the last request was sent, within which all must have ended."""


@dataclass(frozen=True, slots=True)
class Event:
    """An engine comes or goes."""

    at: float
    engine: int
    up: bool


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    requests: Callable[[random.Random], Iterator[Request]]
    """In order of time, from a generator that gives the same each time."""
    hardware: Hardware = H100_8B
    speeds: Sequence[float] = (1.0,) * 8
    """Of each engine."""
    ranks: int = 1
    """Behind the address of each."""
    addressed: bool = False
    """Whether a request can say which of these is to answer it."""
    ttft_objective: float = 1.0
    """Seconds: an answer counts as good that begins within it,"""
    token_objective: float = 0.03
    """and goes on with so many a token."""
    adapters: int | None = None
    """That have a slot at each engine."""
    adapter_names: Sequence[str] = ()
    events: Sequence[Event] = ()
    first_token_counts: bool = False
    """Whether TTFT is what it is about."""


@dataclass(slots=True)
class Run:
    workload: Workload
    records: list[Record] = field(default_factory=list)
    engines: list[Engine | Ranks] = field(default_factory=list)
    seconds: float = 0.0


MakePolicies = Callable[[random.Random], Policies]


def simulate(
    workload: Workload,
    make: MakePolicies,
    *,
    routers: int = 1,
    link: Link | None = None,
    probe_seconds: float = PROBE_SECONDS,
    seed: int = 1,
) -> Run:
    """`make`: the policies of each router. `link`: how they reach one another; None: they do not. `probe_seconds`:
    between two looks of a router at the engines' gauges. `seed`: of the traffic, and of all else that chance decides;
    1 is that of the tables."""
    loop = VirtualLoop()
    result = Run(workload)
    result.engines = [_engine(loop, workload, speed) for speed in workload.speeds]
    replicas = [
        Router(
            loop,
            result.engines,
            make(random.Random(f"{seed} {number}")),
            random.Random(number),
            f"router-{number}",
            addressed=workload.addressed,
        )
        for number in range(routers)
    ]
    play(loop, result, replicas, link=link, probe_seconds=probe_seconds, seed=seed)
    return result


def play(
    loop: VirtualLoop,
    result: Run,
    routers: Sequence[Router],
    *,
    link: Link | None = None,
    probe_seconds: float = PROBE_SECONDS,
    seed: int = 1,
) -> None:
    """Let the clients of a workload send to these routers, in front of the engines of `result`."""
    channel = None
    if link is not None:
        channel = Channel(
            loop, {router.replica: router.turns for router in routers}, link, random.Random(f"link {seed}")
        )
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, fault: faults.append(fault))
    traffic = random.Random(result.workload.name if seed == 1 else f"{result.workload.name} {seed}")
    run(_Play(loop, result, routers, channel, probe_seconds, random.Random(seed), traffic).play(), loop)
    if faults:
        raise faults[0].get("exception") or RuntimeError(faults[0]["message"])


def _engine(loop: VirtualLoop, workload: Workload, speed: float) -> Engine | Ranks:
    if workload.ranks > 1:
        return Ranks(loop, workload.hardware, workload.ranks, speed, workload.adapters)
    return Engine(loop, workload.hardware, speed, workload.adapters)


class _Play:
    def __init__(
        self,
        loop: VirtualLoop,
        result: Run,
        routers: Sequence[Router],
        channel: Channel | None,
        probe_seconds: float,
        rng: random.Random,
        traffic: random.Random,
    ) -> None:
        self._loop = loop
        self._result = result
        self._routers = routers
        self._channel = channel
        self._probe_seconds = probe_seconds
        self._rng = rng
        self._traffic = traffic
        self._open: set[asyncio.Task[None]] = set()

    async def play(self) -> None:
        workload = self._result.workload
        absent = {event.engine for event in reversed(workload.events) if event.up}
        absent -= {event.engine for event in workload.events if not event.up and self._first(event)}
        for place in range(len(workload.speeds)):
            if place not in absent:
                self._up(place)
        works = [*map(self._happen, workload.events), *map(self._probe, range(len(self._routers)))]
        if self._channel is not None:
            works.append(self._channel.run())
        background = [asyncio.create_task(each) for each in works]
        for request in workload.requests(self._traffic):
            await self._until(request.at)
            self._send(request)
        async with asyncio.timeout(_PATIENCE):
            while self._open:
                await asyncio.wait(self._open)
        self._result.seconds = self._loop.time()
        for task in background:
            task.cancel()

    def _first(self, event: Event) -> bool:
        """Whether it is the first that happens to its engine."""
        return event is min((each for each in self._result.workload.events if each.engine == event.engine), key=_at)

    def _send(self, request: Request) -> None:
        task = asyncio.create_task(self._client(request))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _client(self, request: Request) -> None:
        router = self._routers[int(self._rng.random() * len(self._routers))]
        self._result.records.append(await router.serve(request))
        if request.then is not None and (following := request.then(self._loop.time())) is not None:
            await self._until(following.at)
            self._send(following)

    async def _until(self, at: float) -> None:
        if at > self._loop.time():
            await asyncio.sleep(at - self._loop.time())

    async def _happen(self, event: Event) -> None:
        await self._until(event.at)
        if event.up:
            self._up(event.engine)
            return
        self._result.engines[event.engine].die()
        for router in self._routers:
            router.down(event.engine)

    def _up(self, place: int) -> None:
        for router in self._routers:
            router.up(place, self._result.workload.adapter_names)

    async def _probe(self, place: int) -> None:
        """Each router by itself, so that what they know is of different age."""
        await asyncio.sleep(self._probe_seconds * place / len(self._routers))
        while True:
            await asyncio.sleep(self._probe_seconds)
            self._routers[place].read_gauges()


def _at(event: Event) -> float:
    return event.at
