"""Routers of the product before modelled engines: its own fleet, dispatcher, pickers, index, breaker and hold.

What is ours here is what has a socket in the product: to hand a request to an engine and tell the dispatcher what
became of it (`gateway/forward.py`), and to read gauges (`endpoints/probe.py`).
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.fleet.engine import End, Engine, Stay, TurnedDownError
from benchmarks.fleet.memory import BYTES, Memory
from benchmarks.fleet.peers.base import Only
from benchmarks.fleet.ranks import Ranks, RanksMemory
from benchmarks.fleet.requests import Request
from headwater.http.descriptors import Descriptors
from headwater.openai.errors import APIError
from headwater.prefix import root_hash, text_chain
from headwater_router.admission.ceiling import Report
from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.dispatch import Dispatch
from headwater_router.dispatch.dispatcher import Dispatcher
from headwater_router.dispatch.waiting import Patience
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.group import Group
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.usage import Usage
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Prompt
from headwater_router.picker.policies import Policies
from headwater_router.replicas.replica import Replica
from headwater_router.replicas.turns import Turns

MODEL: Final = "m"
PROBE_SECONDS: Final = 1.0
"""Between two looks at an engine's gauges, as by default."""
PATIENCE: Final = {
    WaitReason.NOT_READY: Patience(256, 300.0),
    WaitReason.FULL: Patience(256, 60.0),
    WaitReason.NO_CONNECTION: Patience(1, 1.0),
}
"""As by default."""
_BLOCK_TOKENS: Final = 16
"""Of the engines' own cache, as they say on their page."""


@dataclass(slots=True)
class ModelledPrompt(Prompt):
    """With what engines know of it, for rules that follow what they hold."""

    request: Request | None = None


@dataclass(slots=True, eq=False)
class Record:
    """What a client saw of a request. Times are seconds."""

    request: Request
    ttft: float | None = None
    """None where it was not streamed, or refused."""
    duration: float | None = None
    """None: refused."""
    cached: int = 0
    engine: Engine | Ranks | None = None

    @property
    def per_token(self) -> float | None:
        """Between two tokens of a streamed answer."""
        tokens = self.request.output_tokens
        if self.ttft is None or self.duration is None or tokens < 2:
            return None
        return (self.duration - self.ttft) / (tokens - 1)


class Router:
    """One replica. Its endpoints are the engines, known by their places in the list."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engines: Sequence[Engine | Ranks],
        policies: Policies,
        rng: random.Random,
        name: str = "router",
        groups: Sequence[Group] = (),
        *,
        addressed: bool = False,
    ) -> None:
        """`groups`: the deployment of each engine; none: all are of one. `addressed`: ranks are told apart."""
        self.policies = policies
        self.metrics = RouterMetrics()
        self.fleet = Fleet(lambda: Breaker(failures=5, window=60.0, open_for=30.0), policies.forget)
        self.dispatcher = Dispatcher(
            self.fleet,
            policies,
            self.metrics,
            Descriptors(1_000_000),
            PATIENCE,
            max_attempts=3,
            answer_timeout=600.0,
            rng=rng,
            clock=loop.time,
        )
        self.turns = Turns()
        self.dispatcher.on_change = self.turns.happened
        self.replica = Replica(
            name,
            lambda: ((endpoint.incarnation, target) for endpoint in self.endpoints for target in endpoint.targets),
            policies,
            self.metrics.shared_prefixes,
            self.metrics.shared_malformed,
        )
        self.endpoints: list[Endpoint] = []
        self._loop = loop
        self._engines = list(engines)
        self._addressed = addressed
        self._by_spec: dict[EndpointSpec, Engine | Ranks] = {}
        for place, engine in enumerate(engines):
            url = f"http://10.0.{place // 250}.{place % 250 + 1}:8000"
            group = groups[place] if groups else Group()
            self._by_spec[EndpointSpec(url, f"engine-{place}", "vllm", group=group)] = engine
        self.fleet.replace(list(self._by_spec))
        self.endpoints = list(self.fleet)
        if isinstance(policies, Only):
            policies.follow(self.memory_of)

    def memory_of(self, target_id: str) -> Memory | RanksMemory | None:
        """What the engine of this name holds: KV events tell the rules that follow them. None: it has gone."""
        for endpoint, engine in zip(self.endpoints, self._engines, strict=True):
            for target in endpoint.targets:
                if target.id == target_id:
                    return _of_rank(engine, target.rank).memory
        return None

    def up(self, place: int, adapters: Sequence[str] = ()) -> None:
        """An engine's probe says that it is ready, and what it serves."""
        endpoint, engine = self.endpoints[place], self._engines[place]
        if isinstance(engine, Ranks):
            self.fleet.found_ranks(endpoint, len(engine.ranks), len(engine.ranks) if self._addressed else 1)
        for target in endpoint.targets:
            blocks = _of_rank(engine, target.rank).kv_tokens // _BLOCK_TOKENS
            target.load.block_size, target.load.total_blocks = _BLOCK_TOKENS, blocks
        served = [ServedModel(MODEL, MODEL, "")] + [ServedModel(each, MODEL, each) for each in adapters]
        self.fleet.mark_ready(endpoint, served)

    def down(self, place: int) -> None:
        """Nobody listens there any more."""
        self.fleet.mark_dead(self.endpoints[place], "nobody listens")

    def read_gauges(self) -> None:
        for endpoint, engine in zip(self.endpoints, self._engines, strict=True):
            if endpoint.ready:
                for target in endpoint.targets:
                    told = _of_rank(engine, target.rank)
                    report = Report(
                        told.running,
                        told.waiting,
                        told.memory.usage,
                        adapters=told.adapters,
                        token_times=told.token_times,
                    )
                    target.load.report(report)
                self.fleet.on_report(endpoint)

    async def serve(self, request: Request) -> Record:
        record, now = Record(request), self._loop.time()
        call = self.call(request, now)
        self.dispatcher.budget.open_requests += 1
        try:
            while not await self._attempt(await self.dispatcher.choose(call), record, now):
                pass
        except APIError:
            pass  # Refused.
        finally:
            self.dispatcher.close(call, self._loop.time(), Outcome.UNSENT)
            self.dispatcher.budget.open_requests -= 1
        return record

    def call(self, request: Request, now: float) -> Call:
        return Call(
            "/v1/completions",
            b"",
            request.adapter or MODEL,
            ServedModel(request.adapter or MODEL, MODEL, request.adapter),
            prompt_of(request),
            None,
            now,
        )

    async def _attempt(self, dispatch: Dispatch, record: Record, began: float) -> bool:
        """Returns whether that is the end of it."""
        request, call = record.request, dispatch.call
        engine = self._by_spec[dispatch.endpoint.spec]

        def first(now: float) -> None:
            if request.streamed:
                record.ttft = now - began
                dispatch.answered(200)
                dispatch.first_token(now)

        if not dispatch.endpoint.ready:
            dispatch.ended(Outcome.UNREACHABLE, self._loop.time())
            return not await self.dispatcher.may_retry(call, Outcome.UNREACHABLE)
        call.sends.sent()
        try:
            stay = _of_rank(engine, dispatch.decision.target.rank).submit(request, first)
        except TurnedDownError:
            dispatch.answered(429)
            again = await self.dispatcher.may_retry(call, Outcome.OVERLOADED)
            dispatch.ended(Outcome.OVERLOADED, self._loop.time())
            return not again
        if await stay.ended is End.ANSWERED:
            self._answered(dispatch, record, stay, began)
            record.engine = engine
            return True
        return await self._lost(dispatch, record)

    def _answered(self, dispatch: Dispatch, record: Record, stay: Stay, began: float) -> None:
        now, request = self._loop.time(), record.request
        if not request.streamed:
            dispatch.answered(200)
            dispatch.first_token(now)
        record.duration, record.cached = now - began, stay.cached
        dispatch.ended(Outcome.ANSWERED, now, usage=Usage(request.prompt_tokens, stay.cached, request.output_tokens))

    async def _lost(self, dispatch: Dispatch, record: Record) -> bool:
        began_to_answer = record.ttft is not None
        dispatch.call.sends.lost()
        dispatch.ended(Outcome.LOST, self._loop.time())
        return began_to_answer or not await self.dispatcher.may_retry(dispatch.call, Outcome.LOST)


def _of_rank(engine: Engine | Ranks, rank: int | None) -> Engine | Ranks:
    return engine.ranks[rank] if isinstance(engine, Ranks) and rank is not None else engine


def prompt_of(request: Request) -> Prompt:
    root = root_hash(MODEL, adapter=request.adapter)
    return ModelledPrompt(
        MODEL,
        text_chain(root, request.prompt),
        request.prompt_tokens,
        text_block_tokens=512 / BYTES,
        usual_block_tokens=512 / BYTES,
        text_bytes=len(request.prompt),
        streamed=request.streamed,
        adapter=request.adapter,
        session=request.session,
        request=request,
    )
