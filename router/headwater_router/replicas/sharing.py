"""Carries what routers tell one another through a channel of Redis (what that is: `replicas.replica`).

Requests never wait for Redis, and nothing depends on it: where it is gone, each router goes on by itself, and tries
again. A router that comes later learns from then on, and asks another one for what was before.

A message is bounded before it is read (see `replicas.message`), but not before it is here: what Redis sends at once,
the client takes in. Redis itself closes the connection of a subscriber for whom more than
`client-output-buffer-limit pubsub` waits, 32 MB unless it is configured otherwise, which bounds a message, too.

Every router also hears itself, ten times a second. If it does not for a while, the connection is dead, however open it
looks.
"""

import asyncio
import secrets
import time
from typing import Final
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from headwater.backoff import Backoff
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.picker.policies import Policies
from headwater_router.replicas.message import encode
from headwater_router.replicas.replica import Outgoing, Replica
from headwater_router.replicas.turns import Turns

log = structlog.get_logger(__name__)

CHANNEL: Final = "headwater:prefixes"
_SILENCE: Final = 15.0
"""Seconds without any message, be it one's own, after which the connection counts as lost."""
_PATIENCE: Final = 5.0
"""Seconds that Redis may take for anything."""
_BACKOFF: Final = Backoff(0.5, 15.0)


def address_of(url: str) -> str:
    """HOST:PORT. Raises ValueError for a URL that is none, in words that do not repeat it: it may hold a password."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError
        parse_url(url)
        return f"{parts.hostname}:{parts.port or 6379}"
    except ValueError:
        raise ValueError(
            "must be redis://[[USER]:PASSWORD@]HOST[:PORT], or rediss:// for TLS, "
            "with %XX for characters that mean something in a URL"
        ) from None


class Sharing:
    """Run it as a task for as long as the router runs."""

    def __init__(self, url: str, fleet: Fleet, policies: Policies, metrics: RouterMetrics) -> None:
        """Raises ValueError, as `address_of`."""
        self._address = address_of(url)
        self._url = url
        self._metrics = metrics
        self.replica = Replica(
            secrets.token_hex(8),
            lambda: ((endpoint.incarnation, target) for endpoint in fleet for target in endpoint.targets),
            policies,
            metrics.shared_prefixes,
            metrics.shared_malformed,
        )
        self.turns = Turns()
        self._connected: bool | None = None
        self._failures = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._talk()
            except Exception as error:
                # Whatever it was, the router goes on without it.
                self._lost(error)
            finally:
                self._metrics.redis_connected.set(0)
                self.replica.left()
            await asyncio.sleep(_BACKOFF.jittered(self._failures))

    async def _talk(self) -> None:
        """Until Redis is lost: raises an error that says how."""
        # The limits of time are ours: the client's own one for sending is asyncio.wait_for, in which the end of a task
        # may get lost, and this one would send for ever.
        connection = Redis.from_url(
            self._url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=_PATIENCE,
        )
        async with connection as redis, redis.pubsub() as pubsub:
            async with asyncio.timeout(_PATIENCE):
                await pubsub.subscribe(CHANNEL)
                await pubsub.get_message(timeout=None)  # that it is subscribed, or why not
                # Heard by ourselves, too: it shows that the way is open.
                await redis.publish(CHANNEL, encode(self.replica.name, []))
            self._joined()
            both = [asyncio.create_task(each) for each in (self._receive(pubsub), self._send(redis))]
            # No TaskGroup: one that is cancelled in the moment in which a task of it fails tells of the failure alone
            # (Python 3.11), and whoever goes on after failures would go on for ever.
            try:
                ended, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                ended.pop().result()
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)

    def _joined(self) -> None:
        log.info("shares prefixes with other routers", redis=self._address)
        self._connected, self._failures = True, 0
        self.replica.joined(time.monotonic())
        self._metrics.redis_connected.set(1)

    def _lost(self, error: Exception) -> None:
        if self._connected is not False:
            reason = str(error) or type(error).__name__
            log.warning("Redis cannot be used; prefixes are not shared meanwhile", redis=self._address, reason=reason)
        self._connected = False
        self._failures += 1

    async def _send(self, redis: Redis) -> None:
        while True:
            outgoing = self.replica.outgoing(time.monotonic())
            if outgoing is not None:
                await self._publish(redis, outgoing)
            await self.turns.next(outgoing is not None)

    async def _publish(self, redis: Redis, outgoing: Outgoing) -> None:
        sent = 0
        try:
            async with asyncio.timeout(_PATIENCE):
                await redis.publish(CHANNEL, outgoing.data)
            sent = outgoing.prefixes
        finally:
            self._metrics.shared_prefixes["sent"].inc(sent)
            self._metrics.shared_prefixes["dropped"].inc(outgoing.prefixes - sent)

    async def _receive(self, pubsub: PubSub) -> None:
        while True:
            async with asyncio.timeout(_SILENCE):
                received = await pubsub.get_message(timeout=None)
            if received is not None and received["type"] == "message":
                for _ in self.replica.incoming(received["data"], time.monotonic()):
                    await asyncio.sleep(0)
            # Neither must many messages hold up the requests that share this loop.
            await asyncio.sleep(0)
