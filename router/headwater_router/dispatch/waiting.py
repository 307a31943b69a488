"""Has requests wait in the waiting room (`admission.room`), each until it goes on, its time is over, or its client
leaves.

Nothing is looked at again and again. Whoever changes what somebody may wait for says so: an answer ends, an endpoint
gets ready, its gauges are read, a descriptor is given back. Who goes on then is sent, and counted, within that call;
when its own task runs, it finds what was decided. So nobody takes its place in between.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from headwater.http.clients import too_many_connections
from headwater.openai.errors import APIError, ServiceUnavailableError
from headwater_router.admission.room import Line, Room, Waiter, WaitReason
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.dispatch import Dispatch, targets_of
from headwater_router.gateway.wait_metrics import End, WaitMetrics

log = structlog.get_logger(__name__)

MOST_BYTES: Final = 256 * 2**20
"""Of the bodies of all who wait."""
_FULL_RETRY_AFTER: Final = 5.0
_LATE_RETRY_AFTER: Final = 10.0
_LONGEST_RETRY_AFTER: Final = 60.0

Go = Callable[[Call], Dispatch | WaitReason]
"""Sends a request on, or says what it still waits for. Raises APIError where it has an answer already."""


@dataclass(frozen=True, slots=True)
class Patience:
    """For one reason to wait."""

    requests: int
    """That may wait for one deployment, or for one model where there is none; for endpoints that are full, as many for
    each of them. 0: none waits."""
    seconds: float
    """Of one request, in all."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What one may hope for who waits for room."""

    endpoints: int
    """That it could go to if they had room."""
    running: int
    """Requests there, each of which makes room when it ends."""
    seconds: float
    """That one lasts."""

    def seconds_until_turn(self, ahead: int) -> float:
        """By Little's law, with so many before it. 0 where those that run now make room for all of them: when the first
        ends is anybody's guess."""
        return (ahead + 1) * self.seconds / self.running if 0 < self.running <= ahead else 0.0


@dataclass(slots=True, eq=False, kw_only=True)
class _Guest(Waiter):
    call: Call
    turn: "asyncio.Future[Dispatch]"
    since: float
    """When it began to wait for this."""
    waits_for: WaitReason
    timeout: asyncio.Timeout | None = None


class WaitingRoom:
    """For one event loop. `advance` is to be called with each change that somebody may wait for."""

    def __init__(
        self,
        go: Go,
        patience: Mapping[WaitReason, Patience],
        metrics: WaitMetrics,
        clock: Callable[[], float],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`clock`: monotonic seconds."""
        self._go = go
        self._patience = patience
        self._metrics = metrics
        self._clock = clock
        self._room: Room[_Guest] = Room(most_bytes)
        self._draining = False
        self._advancing = False

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._room)

    def waiting(self) -> dict[WaitReason, int]:
        """How many wait for what."""
        return {reason: self._room.totals[reason] for reason in WaitReason}

    def waiting_for_a_connection(self) -> int:
        return self._room.totals[WaitReason.NO_CONNECTION]

    def waiting_for(self, scope: str) -> int:
        """How many wait for endpoints of a deployment, or a model, to get ready or to have room."""
        counts = self._room.counts
        return counts[WaitReason.NOT_READY, scope] + counts[WaitReason.FULL, scope]

    async def wait(self, call: Call, reason: WaitReason, scope: str, rank: float, prospect: Prospect) -> Dispatch:
        """Until it is sent. `scope`: whose limit it counts for. `rank`: see `admission.room`.

        Raises ServiceUnavailableError where there is no room, where its turn would come too late, when its time is
        over, and when the router is about to end; and what `go` raises.
        """
        guest = _Guest(
            line=Line(call.model, call.only, targets_of(call.tried)),
            scope=scope,
            size=len(call.body),
            rank=rank,
            reason=reason,
            call=call,
            turn=asyncio.get_running_loop().create_future(),
            since=self._clock(),
            waits_for=reason,
        )
        if self._draining:
            self._metrics.ended(reason, End.DRAINING)
            raise _draining()
        most = self._patience[reason].requests
        if reason is WaitReason.FULL:
            most *= max(1, prospect.endpoints)
            late = prospect.seconds_until_turn(self._room.ahead(call.model, rank)) - self._left(guest)
            if late > 0:
                self._metrics.ended(reason, End.FUTILE)
                raise self._futile(guest, late)
        if not self._room.enter(guest, most):
            self._metrics.ended(reason, End.FULL)
            raise self._full(guest)
        began, deadline = guest.since, call.deadline
        call.forgiven = len(call.stays)
        end = End.LEFT
        try:
            dispatch = await self._turn(guest)
            end = End.SENT
        except TimeoutError:
            end = End.LATE
            raise self._late(guest) from None
        except APIError as error:
            end = End.DRAINING if error.code == "draining" else End.SENT
            raise
        finally:
            self._room.leave(guest)
            self._count(guest)
            self._metrics.ended(guest.reason, end)
        if deadline is not None:
            call.deadline = deadline + (self._clock() - began)  # The wait was not the engines'.
        return dispatch

    async def _turn(self, guest: _Guest) -> Dispatch:
        """Raises TimeoutError."""
        try:
            async with asyncio.timeout(self._left(guest)) as guest.timeout:
                return await guest.turn
        except TimeoutError:
            if not guest.turn.done() or guest.turn.cancelled():
                raise
            return guest.turn.result()  # It had its turn in that very moment.

    def advance(self, concerned: Callable[[str], bool] | None = None) -> None:
        """Something has changed for the models `concerned`, or for all: let go whom it lets go."""
        if self._advancing or not self._room:
            return
        self._advancing = True
        try:
            changed = self._room.advance(self._try, concerned)
        finally:
            self._advancing = False
        for guest in changed:
            self._count(guest)
            if guest.timeout is not None and not guest.timeout.expired():
                guest.timeout.reschedule(asyncio.get_running_loop().time() + self._left(guest))

    def drain(self) -> None:
        """Another router has more time to wait than this one, which is about to end."""
        self._draining = True
        for guest in self._room:
            if not guest.turn.done():
                guest.turn.set_exception(_draining())

    def _try(self, guest: _Guest) -> WaitReason | None:
        if guest.turn.done():
            return None  # Its own task has not noticed yet that its wait is over.
        try:
            found = self._go(guest.call)
        except Exception as error:
            guest.turn.set_exception(error)  # It is this request's, and not of whoever made room for it.
            return None
        if isinstance(found, WaitReason):
            return found
        guest.turn.set_result(found)
        return None

    def _left(self, guest: _Guest) -> float:
        """Seconds that it may still wait for this."""
        return self._patience[guest.reason].seconds - guest.call.waited.get(guest.reason, 0.0)

    def _count(self, guest: _Guest) -> None:
        """It has waited for that until now."""
        now, reason, waited = self._clock(), guest.waits_for, guest.call.waited
        self._metrics.waited(reason, now - guest.since)
        waited[reason] = waited.get(reason, 0.0) + now - guest.since
        guest.since, guest.waits_for = now, guest.reason

    def _full(self, guest: _Guest) -> ServiceUnavailableError:
        model, wait = guest.call.model, f"{self._room.counts[guest.reason, guest.scope]} requests wait already"
        match guest.reason:
            case WaitReason.NOT_READY:
                return ServiceUnavailableError(
                    f"No endpoint of the model `{model}` is ready, and {wait}.",
                    code="hold_full",
                    retry_after=_FULL_RETRY_AFTER,
                )
            case WaitReason.FULL:
                return ServiceUnavailableError(
                    f"All endpoints of the model `{model}` have as many requests as they run, and {wait}.",
                    code="endpoints_full",
                    retry_after=_FULL_RETRY_AFTER,
                )
            case WaitReason.NO_CONNECTION:
                return too_many_connections()

    def _futile(self, guest: _Guest, late: float) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"All endpoints of the model `{guest.call.model}` have as many requests as they run, and so many wait "
            f"already that this one's turn would not come within {self._patience[guest.reason].seconds:g} seconds.",
            code="endpoints_full",
            retry_after=min(max(1.0, late), _LONGEST_RETRY_AFTER),
        )

    def _late(self, guest: _Guest) -> ServiceUnavailableError:
        model, seconds = guest.call.model, f"{self._patience[guest.reason].seconds:g} seconds"
        match guest.reason:
            case WaitReason.NOT_READY:
                return ServiceUnavailableError(
                    f"No endpoint of the model `{model}` got ready within {seconds}.",
                    code="no_endpoint_ready",
                    retry_after=_LATE_RETRY_AFTER,
                )
            case WaitReason.FULL:
                return ServiceUnavailableError(
                    f"No endpoint of the model `{model}` had room within {seconds}.",
                    code="endpoints_full",
                    retry_after=_LATE_RETRY_AFTER,
                )
            case WaitReason.NO_CONNECTION:
                return too_many_connections()


def _draining() -> ServiceUnavailableError:
    return ServiceUnavailableError("The router is about to end.", code="draining", retry_after=1)
