"""Chooses an endpoint for each call, and judges what came of it.

identity ──> waits, while nobody has room ──> deployment by weight ──> endpoint by policy ──> `Dispatch` ──> judgement
   ^                                                                                                │
   └────────────────────────────── another try, where `retries` allows one ─────────────────────────┘
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from headwater.backoff import Backoff
from headwater.http.descriptors import Descriptors
from headwater.openai.errors import BadRequestError, ModelNotFoundError, ServiceUnavailableError
from headwater_router.admission.room import AGEING, WaitReason
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.candidates import Candidates, Found
from headwater_router.dispatch.dispatch import Dispatch, Stage
from headwater_router.dispatch.durations import Durations
from headwater_router.dispatch.lineup import Lineup
from headwater_router.dispatch.penalties import Penalties
from headwater_router.dispatch.poison import Poison, fingerprint
from headwater_router.dispatch.retries import FREE, ONCE, RetryBudget, may_be_sent_again
from headwater_router.dispatch.spread import Spread
from headwater_router.dispatch.waiting import Patience, Prospect, WaitingRoom
from headwater_router.endpoints.ejection import Reason, reason_to_eject
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Picker, Target
from headwater_router.picker.policies import Policies
from headwater_router.picker.split import Why

log = structlog.get_logger(__name__)

_MOST_STAYS: Final = 4
"""Times as many as it has attempts: who waits for room may be turned down more often, but not for ever."""
_BACKOFF: Final = Backoff(0.05, 2.0)
_NOT_READY_RETRY_AFTER: Final = 2.0
_UNATTAINABLE_RETRY_AFTER: Final = 2.0
_BUSY: Final = 1.0
"""Seconds that an endpoint gets nothing which is busy and does not say for how long."""
_LONGEST_BUSY: Final = 60.0
_REMEMBERED: Final = 200
"""Decisions, and failures, that are kept to be looked at."""

_TURNED_DOWN: Final = frozenset(
    (Outcome.REFUSED, Outcome.DENIED, Outcome.OVERLOADED, Outcome.FAILED, Outcome.UNREACHABLE, Outcome.LOST)
)
_CHARGED: Final = frozenset(
    (Outcome.DENIED, Outcome.FAILED, Outcome.UNREACHABLE, Outcome.LOST, Outcome.STALLED, Outcome.TIMED_OUT)
)


class Dispatcher:
    """See the module. For one event loop; nothing here touches a socket."""

    def __init__(
        self,
        fleet: Fleet,
        policies: Policies,
        metrics: RouterMetrics,
        descriptors: Descriptors,
        patience: Mapping[WaitReason, Patience],
        *,
        max_attempts: int,
        answer_timeout: float,
        refuses_slo: bool = False,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`answer_timeout`: seconds until the first piece of content, over all tries. `refuses_slo`: what should miss
        what its client wants of it is not sent. `clock`: monotonic seconds.

        It follows what changes in the fleet and among the descriptors."""
        self.fleet = fleet
        self.candidates = Candidates(fleet, waits=patience[WaitReason.FULL].requests > 0)
        self.room = WaitingRoom(self._go, patience, metrics.waits, clock)
        self.budget = RetryBudget()
        self.spread = Spread(fleet, policies.held, rng)
        self.decisions: deque[Dispatch] = deque(maxlen=_REMEMBERED)
        self.failures: deque[tuple[float, Dispatch]] = deque(maxlen=_REMEMBERED)
        """With the time of the day, in seconds since the epoch."""
        self.on_change: Callable[[], None] | None = None
        """Is called for every request when an endpoint was chosen for it, and when its answer begins."""
        self._policies = policies
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._answer_timeout = answer_timeout
        self._refuses_slo = refuses_slo
        self._poison = Poison()
        self._clock = clock
        self._rng = rng or random.Random()
        self._descriptors = descriptors
        self._holds = patience[WaitReason.NOT_READY].requests > 0
        self._timer: asyncio.TimerHandle | None = None
        self._durations = Durations()
        self._penalties = Penalties(self._durations)
        fleet.on_change, fleet.on_report = self._fleet_changed, self._reported
        descriptors.follow(self.room.waiting_for_a_connection, self.room.advance)

    # What the gateway asks

    def identity(self, model: str) -> ServedModel:
        """What the name stands for.

        Raises ModelNotFoundError, or ServiceUnavailableError where it is not known yet what there is.
        """
        found = self.fleet.identity(model)
        if found is not None:
            return found
        if self.fleet.undiscovered or model in self.fleet.models:
            raise self.not_ready(model)
        raise ModelNotFoundError(model, self.fleet.models)

    def check(self, path: str, body: bytes, now: float) -> None:
        """Raises BadRequestError for a body that engines died of."""
        if self._poison and self._poison.to_blame(fingerprint(path, body), now):
            raise BadRequestError(
                "Two engines broke off on this request, so it is not sent to a third.",
                code="request_breaks_engines",
            )

    async def choose(self, call: Call) -> Dispatch:
        """Send it, now or when there is room. Raises APIError where there is nowhere: it is what the client gets."""
        tries = len(call.stays) - call.forgiven
        if tries and call.stays[-1].outcome is not Outcome.STALE:
            await asyncio.sleep(_BACKOFF.jittered(tries, self._rng))
        now = self._clock()
        if self.candidates.settle(now):
            self.room.advance()  # Who has waited for that goes first.
        found = self._place(call, now)
        return found if isinstance(found, Dispatch) else await self._wait(call, found, now)

    def _place(self, call: Call, now: float) -> Dispatch | WaitReason:
        """Send it, or say what it has to wait for. Raises APIError."""
        found = self.candidates.find(call, now)
        if isinstance(found, WaitReason):
            return found
        if found is None:
            if self._to_wake(call) is None:
                raise self.not_ready(call.model)
            return WaitReason.NOT_READY
        if not call.connected:
            if not self._descriptors.take():
                return WaitReason.NO_CONNECTION
            call.connected = True
        return self._send(call, found, now)

    def _send(self, call: Call, found: Found, now: float) -> Dispatch:
        lineup, why = self.spread.choose(call, found.lineups, now)
        self._penalties.settle(now)
        if call.deadline is None:
            call.deadline = now + self._answer_timeout
        picker = self._picker(lineup)
        decision = picker.pick(call.prompt, lineup.targets, now, found.avoided)
        target = decision.target
        if decision.keeps_slo is False and self._refuses_slo and not call.stays:
            picker.finished(decision, now, Outcome.UNSENT)
            raise _unattainable()
        endpoint, model = lineup.served[target.id]
        if target.load.ceiling.bounded:
            self.candidates.check(target)
        if self.candidates.is_busy(endpoint):
            call.insisted = True
        dispatch = Dispatch(call, endpoint, model.upstream, picker, decision, self, why)
        call.stays.append(dispatch)
        call.tried.add(dispatch)
        self.decisions.append(dispatch)
        if self.on_change is not None:
            self.on_change()
        self._metrics.decisions[decision.label].inc()
        if why is not Why.ALONE:
            self._metrics.deployments.sent(lineup.deployment, call.kind, why)
        return dispatch

    async def _wait(self, call: Call, reason: WaitReason, now: float) -> Dispatch:
        self._disconnect(call)  # Others may need it meanwhile.
        if reason is WaitReason.NOT_READY:
            call.tried.clear()  # Whoever will be ready has come, or come back, since.
        scope = self.spread.to_wake(call.model, call.conversation) or call.model
        there = self.candidates.of(call.model)
        alone = [self._picker(each).alone(call.prompt, each.targets, now) for each in there]
        rank = call.started + AGEING * min(alone, default=0.0)
        self._look_again_later()
        running = sum(target.load.in_flight for each in there for target in each.targets.all)
        prospect = Prospect(sum(len(each.served) for each in there), running, self._durations.of(call.identity.base))
        return await self.room.wait(call, reason, scope, rank, prospect)

    def _go(self, call: Call) -> Dispatch | WaitReason:
        """It has waited, and something has changed."""
        self.identity(call.model)
        return self._place(call, self._clock())

    def _picker(self, lineup: Lineup) -> Picker:
        return self._policies.of(lineup.deployment.policy, lineup.deployment.objective)

    async def may_retry(self, call: Call, outcome: Outcome) -> bool:
        """Whether it may be tried on another endpoint; if so, `choose` is to be called next."""
        now = self._clock()
        before = [dispatch.outcome for dispatch in call.stays[:-1]]
        if self._attempts(call, outcome) >= self._max_attempts or not may_be_sent_again(outcome, before, call.sends):
            return False
        if outcome is Outcome.OVERLOADED and self.candidates.waits:
            call.tried.discard(call.stays[-1])  # It may have room later.
        if self.candidates.find(call, now) is None and self._to_wake(call) is None:
            return False
        if outcome in FREE or outcome is Outcome.STALE:
            self._metrics.retries.labels(outcome).inc()
            return True
        if outcome is Outcome.LOST:
            in_budget = await self.budget.wait(max(0.0, (call.deadline or now) - now))
        else:
            in_budget = self.budget.take()
        if in_budget:
            call.in_budget = len(call.stays) + 1
        self._metrics.retries.labels(outcome if in_budget else "no_budget").inc()
        return in_budget

    def close(self, call: Call, now: float, otherwise: Outcome) -> None:
        """The request has ended. What its failures say of the endpoints is decided here at the latest. `otherwise`: the
        outcome of a stay that has none yet."""
        if call.in_budget:
            self._leave_budget(call, call.in_budget)
        if call.stays and call.stays[-1].stage is not Stage.ENDED:
            call.stays[-1].ended(otherwise, now)
        if call.suspects:
            self._charge_suspects(call, now)
        call.forget_body()
        self._disconnect(call)

    def _attempts(self, call: Call, outcome: Outcome) -> int:
        """Those that count. What was turned down before it waited for room does not, for a while."""
        outcomes = [*(dispatch.outcome for dispatch in call.stays[:-1]), outcome]
        forgiven = call.forgiven if len(outcomes) < _MOST_STAYS * self._max_attempts else 0
        return sum(
            each not in (Outcome.STALE, Outcome.UNSUPPORTED) and not (each is Outcome.OVERLOADED and number < forgiven)
            for number, each in enumerate(outcomes)
        )

    def retry_after(self, call: Call, now: float) -> float:
        """The longest time that endpoints of its model have asked for, in seconds; 0 where none did."""
        told = [dispatch.retry_after for dispatch in call.stays]
        busy = [self.candidates.busy_for(endpoint, now) for endpoint, _ in self.fleet.serving(call.model)]
        return max([0.0, *told, *busy])

    def settle(self, now: float) -> None:
        """Take back the penalties whose time is over."""
        self._penalties.settle(now)

    def not_ready(self, model: str) -> ServiceUnavailableError:
        why = self.fleet.why_not_ready(model)
        return ServiceUnavailableError(
            f"No endpoint of the model `{model}` is ready{': ' if why else ''}{why}.",
            code="no_endpoint_ready",
            retry_after=_NOT_READY_RETRY_AFTER,
        )

    def _to_wake(self, call: Call) -> str | None:
        """The deployment that the request is to be held for; None: it is not to be held."""
        if self.fleet.ready(call.model) or not self._holds:
            return None
        return self.spread.to_wake(call.model, call.conversation)

    # What those who wait may wait for

    def _fleet_changed(self) -> None:
        self.candidates.forget_gone()
        self.room.advance()

    def _reported(self, endpoint: Endpoint) -> None:
        """Its gauges were read."""
        for target in endpoint.targets:
            self._room_at(target)

    def _room_at(self, target: Target) -> None:
        """There may be some now."""
        if target.load.ceiling.bounded or self.candidates.full:
            self.candidates.check(target)
        if self.room:
            self.room.advance(lambda model: self.candidates.serves(target, model))

    def _look_again_later(self) -> None:
        """Nothing else tells when the time is over for which an endpoint asked to be left alone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self.candidates.next_free()) is not None:
            seconds = max(0.0, at - self._clock())
            self._timer = asyncio.get_running_loop().call_later(seconds, self._time_is_over)

    def _time_is_over(self) -> None:
        self._timer = None
        self.candidates.settle(self._clock())
        self.room.advance()
        if self.room:
            self._look_again_later()

    def _disconnect(self, call: Call) -> None:
        if call.connected:
            call.connected = False
            self._descriptors.give()

    # What comes of a stay: called by `Dispatch`

    def began(self, dispatch: Dispatch, now: float) -> None:
        """Its first token is here: what others failed before was their own fault, and it is no retry any more."""
        call = dispatch.call
        if call.in_budget:
            self._leave_budget(call, dispatch.attempt)
        if call.suspects:
            self._charge_suspects(call, now)
        if self.on_change is not None:
            self.on_change()

    def left(self, dispatch: Dispatch, now: float) -> None:
        """It has ended."""
        target = dispatch.decision.target
        match dispatch.outcome:
            case Outcome.ANSWERED:
                target.load.ceiling.answered(target.load.there)
            case Outcome.OVERLOADED:
                target.load.ceiling.turned_down(target.load.there)
        self._judge(dispatch, now)
        self._room_at(target)

    def _judge(self, dispatch: Dispatch, now: float) -> None:
        call, outcome, endpoint = dispatch.call, dispatch.outcome, dispatch.endpoint
        if outcome in (Outcome.LOST, Outcome.STALE):
            self._lost(dispatch, now)
        if call.in_budget:
            self._leave_budget(call, dispatch.attempt)
        if outcome is Outcome.ANSWERED:
            self._count_predictions(dispatch, now)
            self._durations.learn(call.identity.base, now - dispatch.at)
            self.spread.learn(dispatch, now)
            endpoint.breaker.answered(now)
            if call.suspects:
                self._charge_suspects(call, now)
            if self._poison:
                self._poison.answered(call.fingerprint)
            return
        if outcome is Outcome.OVERLOADED:
            self.candidates.leave_alone(endpoint, now + min(dispatch.retry_after or _BUSY, _LONGEST_BUSY))
            if self.room:
                self._look_again_later()
        if outcome in _TURNED_DOWN:
            self._penalties.put(dispatch.decision.target, call.identity.base, dispatch.at)
        if outcome in ONCE and dispatch.first_token_at is None:
            self._suspect(dispatch)
        elif outcome in _CHARGED:
            self._charge(endpoint, call.model, now)
        if outcome not in (Outcome.REFUSED, Outcome.CLIENT_LEFT, Outcome.STALE):
            self._remember(dispatch)

    def _count_predictions(self, dispatch: Dispatch, now: float) -> None:
        """Beside what became of them, so that one sees by the metrics whether to believe them."""
        decision, first, usage = dispatch.decision, dispatch.first_token_at, dispatch.usage
        if first is None or decision.predicted_ttft is None or not decision.prompt.streamed:
            return
        metrics = self._metrics.of(dispatch.call.model)
        metrics.first_token.count(decision.predicted_ttft, first - dispatch.at)
        if decision.predicted_per_token is not None and usage is not None and usage.output_tokens:
            metrics.output.count(decision.predicted_per_token * (usage.output_tokens - 1), now - first)

    def _lost(self, dispatch: Dispatch, now: float) -> None:
        call = dispatch.call
        # One that is about to end cuts its answers itself; and a stream may lack its end though nobody died.
        if call.sends.broke_off and dispatch.endpoint.accepting:
            self._poison.lost(call.fingerprint, dispatch.life, now)
        if dispatch.outcome is Outcome.STALE:
            call.tried.discard(dispatch)
            call.doubtful = {dispatch}
            if call.in_budget:
                call.in_budget += 1  # It is the same retry that goes on elsewhere.

    def _suspect(self, dispatch: Dispatch) -> None:
        """Whether it is the endpoint's fault will be seen at the next one: what two replicas fail is the request's."""
        suspects = dispatch.call.suspects
        if suspects:
            suspects.clear()
        else:
            suspects.append(dispatch)

    def _charge_suspects(self, call: Call, now: float) -> None:
        for dispatch in call.suspects:
            self._charge(dispatch.endpoint, call.model, now)
        call.suspects.clear()

    def _charge(self, endpoint: Endpoint, model: str, now: float) -> None:
        endpoint.breaker.failed(now)
        serving = [each for each, _ in self.fleet.serving(model)]
        if endpoint in serving and (reason := reason_to_eject(endpoint, serving, now)) is not None:
            self.eject(endpoint, reason, now)

    def eject(self, endpoint: Endpoint, reason: Reason, now: float, seconds: float | None = None) -> None:
        """`seconds`: how long, unless the breaker is to say."""
        seconds = endpoint.breaker.eject(now, seconds)
        self._metrics.ejections.labels(endpoint.name, reason).inc()
        share = round(endpoint.breaker.error_share(now), 3)
        log.warning("endpoint ejected", endpoint=endpoint.name, reason=reason, error_share=share, seconds=seconds)

    def _remember(self, dispatch: Dispatch) -> None:
        self.failures.append((time.time(), dispatch))
        log.warning(
            "endpoint did not answer",
            request_id=dispatch.call.request_id.decode("latin-1"),
            endpoint=dispatch.endpoint.name,
            model=dispatch.call.model,
            outcome=dispatch.outcome,
            status=dispatch.status,
            reason=dispatch.reason or None,
            attempt=dispatch.attempt,
        )

    def _leave_budget(self, call: Call, attempt: int) -> None:
        """The stay that failed may end after its retry was counted: only that one gives the place back."""
        if call.in_budget == attempt:
            call.in_budget = 0
            self.budget.give()


def _unattainable() -> ServiceUnavailableError:
    return ServiceUnavailableError(
        "No endpoint of the model should answer within the times that the request's headers ask for.",
        code="slo_unattainable",
        retry_after=_UNATTAINABLE_RETRY_AFTER,
    )


def outcome_of(status: int, retry_after: float | None) -> Outcome:
    """Of an answer whose head is here. `retry_after`: seconds, None where the head names none."""
    if 200 <= status < 300:
        return Outcome.ANSWERED
    if status == 429 or (status == 503 and retry_after is not None):
        return Outcome.OVERLOADED
    if status in (401, 403, 404, 424):
        return Outcome.DENIED
    return Outcome.REFUSED if 400 <= status < 500 else Outcome.FAILED  # Engines do not send anybody elsewhere.
