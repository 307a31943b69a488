"""A dispatcher over endpoints that are only names: a test says what becomes of each stay, and what time it is."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headwater.http.descriptors import Descriptors
from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.dispatch import Dispatch
from headwater_router.dispatch.dispatcher import Dispatcher
from headwater_router.dispatch.waiting import Patience
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.deployments import Deployment
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.group import Group
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.usage import Usage
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Prompt
from headwater_router.picker.policies import Policies

MODEL = ServedModel("m", base="m", adapter="")


@dataclass(slots=True, eq=False)
class Dispatching:
    count: int
    policy: str = "round_robin"
    max_attempts: int = 3
    queue: int = 0
    queue_seconds: float = 60.0
    hold: int = 0
    connections: int = 20_000
    refuses_slo: bool = False
    clock: Callable[[], float] | None = None
    """None: `now`."""
    now: float = 1000.0
    groups: Sequence[Group] = ()
    """The deployment of each; none: all are of one."""
    ranks: Sequence[int] = ()
    """Data-parallel engines behind each; none: one."""
    metrics: RouterMetrics = field(default_factory=RouterMetrics)
    fleet: Fleet = field(init=False)
    descriptors: Descriptors = field(init=False)
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        policies = Policies(self.policy, PrefixIndex(), random.Random(1))
        self.fleet = Fleet(lambda: Breaker(failures=5, window=60.0, open_for=30.0), policies.forget)
        groups = self.groups or [Group()] * self.count
        self.fleet.replace(
            [EndpointSpec(f"http://10.0.0.{n}:8000", f"e{n}", "vllm", group=groups[n]) for n in range(self.count)]
        )
        for endpoint, ranks in zip(self.fleet, self.ranks, strict=False):
            self.fleet.found_ranks(endpoint, ranks, ranks)
        for endpoint in self.fleet:
            self.fleet.mark_ready(endpoint, [MODEL])
        self.descriptors = Descriptors(self.connections)
        self.clock = self.clock or (lambda: self.now)
        patience = {
            WaitReason.NOT_READY: Patience(self.hold, 300.0),
            WaitReason.FULL: Patience(self.queue, self.queue_seconds),
            WaitReason.NO_CONNECTION: Patience(1000, 60.0),
        }
        self.dispatcher = Dispatcher(
            self.fleet,
            policies,
            self.metrics,
            self.descriptors,
            patience,
            max_attempts=self.max_attempts,
            answer_timeout=600.0,
            refuses_slo=self.refuses_slo,
            rng=random.Random(1),
            clock=self.clock,
        )

    @property
    def endpoints(self) -> list[Endpoint]:
        return list(self.fleet)

    def call(self, body: bytes = b"{}") -> Call:
        return Call("/v1/completions", body, "m", MODEL, Prompt("m", [], 100), None, self.time())

    def time(self) -> float:
        return self.clock() if self.clock is not None else self.now

    def promise(self) -> None:
        """Its model is a deployment's, which wakes."""
        self.fleet.promised = lambda model: [Deployment("default", "m", ("m",))]  # type: ignore[method-assign]

    def answer(self, dispatch: Dispatch, seconds: float = 0.1, usage: Usage | None = None) -> None:
        """As a good endpoint does."""
        dispatch.answered(200)
        self.now += seconds
        dispatch.first_token(self.time())
        self.now += seconds
        dispatch.ended(Outcome.ANSWERED, self.time(), usage=usage)

    def fail(self, dispatch: Dispatch, outcome: Outcome) -> None:
        """As an endpoint does, or the way to it."""
        sends = dispatch.call.sends
        if outcome not in (Outcome.UNREACHABLE, Outcome.UNSENT):
            sends.sent()
        if outcome in (Outcome.LOST, Outcome.STALE):
            sends.lost()
        dispatch.ended(outcome, self.now)

    def close(self, call: Call) -> None:
        self.dispatcher.close(call, self.now, Outcome.CLIENT_LEFT)

    async def run(self, outcomes: dict[str, Outcome], body: bytes = b"{}") -> Call:
        """One request, where each endpoint ends it as told, and the others answer it."""
        call = self.call(body)
        while True:
            dispatch = await self.dispatcher.choose(call)
            outcome = outcomes.get(dispatch.endpoint.name, Outcome.ANSWERED)
            if outcome is Outcome.ANSWERED:
                self.answer(dispatch)
                break
            self.fail(dispatch, outcome)
            if not await self.dispatcher.may_retry(call, outcome):
                break
        self.close(call)
        return call
