"""Keeps the index true to what other routers have learned, through a channel of Redis.

Each router publishes the prompts that its endpoints have answered, and takes over those of the others for the endpoints
that it knows, too. Nobody depends on it: what is lost costs a prefill, not an answer, so nothing is stored, repeated or
acknowledged, and a router that comes later learns from then on. Requests never wait for Redis.

An engine is known to all routers by its pod and by when its process began (`Endpoint.incarnation`): what is said of one
that has restarted since means nothing to a router that has noticed. So several installations can use one Redis, too.

A message is bounded before it is read (see `replicas.message`), but not before it is here: what Redis sends at once,
the client takes in. Redis itself closes the connection of a subscriber for whom more than
`client-output-buffer-limit pubsub` waits, 32 MB unless it is configured otherwise, which bounds a message, too.

Every router also hears itself. If it does not for a while, the connection is dead, however open it looks.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from headwater.prefix import BLOCK_BYTES
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.index import PrefixIndex
from headwater_router.index.prompt import DEFAULT_BYTES_PER_TOKEN
from headwater_router.picker.base import Target
from headwater_router.picker.prefix import cache_blocks
from headwater_router.replicas.message import MalformedError, Prefix, decode, encode, read
from headwater_router.replicas.outbox import Answered, Outbox

log = structlog.get_logger(__name__)

CHANNEL: Final = "headwater:prefixes"
_GATHER: Final = 0.02
"""Seconds in which answers come together for one message."""
_MESSAGE_BLOCKS: Final = 4000
"""Of one message, more or less."""
_PIECE: Final = 4000
"""Blocks and prompts that are taken over in one stretch: about a millisecond."""
_BEAT: Final = 5.0
"""Seconds without an answer after which a message goes out all the same."""
_SILENCE: Final = 15.0
"""Seconds without any message, be it one's own, after which the connection counts as lost."""
_PATIENCE: Final = 5.0
"""Seconds that Redis may take for anything."""
_FIRST_PAUSE: Final = 0.5
"""Seconds before the second try to connect, twice that before the next; half to all of it, at random."""
_LONGEST_PAUSE: Final = 15.0


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

    def __init__(self, url: str, fleet: Fleet, index: PrefixIndex, metrics: RouterMetrics) -> None:
        """Raises ValueError, as `address_of`."""
        self._address = address_of(url)
        self._url = url
        self._fleet = fleet
        self._index = index
        self._metrics = metrics
        self._router = secrets.token_hex(8)
        self._outbox = Outbox(metrics.shared_prefixes["dropped"])
        self._connected: bool | None = None
        self._failures = 0
        index.on_answer = self._outbox.add

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
            longest: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
            await asyncio.sleep(longest * random.uniform(0.5, 1))

    async def _talk(self) -> None:
        """Until Redis is lost: raises an error that says how."""
        connection = Redis.from_url(
            self._url, protocol=2, retry=Retry(NoBackoff(), 0), socket_connect_timeout=_PATIENCE
        )
        async with connection as redis, redis.pubsub() as pubsub:
            async with asyncio.timeout(_PATIENCE):
                await pubsub.subscribe(CHANNEL)
                await pubsub.get_message(timeout=None)  # that it is subscribed, or why not
            await self._publish(redis, [])
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
        self._metrics.redis_connected.set(1)

    def _lost(self, error: Exception) -> None:
        if self._connected is not False:
            reason = str(error) or type(error).__name__
            log.warning("Redis cannot be used; prefixes are not shared meanwhile", redis=self._address, reason=reason)
        self._connected = False
        self._failures += 1

    async def _send(self, redis: Redis) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_GATHER)
            now = time.monotonic()
            if self._outbox or now - last >= _BEAT:
                await self._publish(redis, self._outbox.take(_MESSAGE_BLOCKS))
                last = now

    async def _publish(self, redis: Redis, answered: list[Answered]) -> None:
        engines = {endpoint.target.id: endpoint.incarnation for endpoint in self._fleet}
        prefixes = [Prefix(engines[target_id], chain) for target_id, chain in answered if target_id in engines]
        sent = 0
        try:
            async with asyncio.timeout(_PATIENCE):
                await redis.publish(CHANNEL, encode(self._router, prefixes))
            sent = len(prefixes)
        finally:
            self._metrics.shared_prefixes["sent"].inc(sent)
            self._metrics.shared_prefixes["dropped"].inc(len(answered) - sent)

    async def _receive(self, pubsub: PubSub) -> None:
        while True:
            async with asyncio.timeout(_SILENCE):
                received = await pubsub.get_message(timeout=None)
            if received is not None and received["type"] == "message":
                for _ in self.take(received["data"]):
                    await asyncio.sleep(0)
            # Neither must many messages hold up the requests that share this loop.
            await asyncio.sleep(0)

    def take(self, data: bytes) -> Iterator[None]:
        """One message, whoever sent it. Works while it is iterated over, and pauses now and then."""
        try:
            message = decode(data)
        except MalformedError as error:
            self._unreadable(error)
            return
        if message.router == self._router:
            return
        targets, work = self._targets(), 0
        unreadable: MalformedError | None = None
        for item in message.items:
            try:
                prefix = read(item)
            except MalformedError as error:
                prefix, unreadable = None, error
            if prefix is not None:
                self._take_over(prefix, targets.get(prefix.engine))
                work += len(prefix.chain)
            work += 1
            if work >= _PIECE:
                yield
                # An endpoint that has gone meanwhile must not be believed to hold anything.
                targets, work = self._targets(), 0
        if unreadable is not None:
            self._unreadable(unreadable)

    def _unreadable(self, error: MalformedError) -> None:
        log.debug("message of another router could not be read, or not all of it", reason=str(error))
        self._metrics.shared_malformed.inc()

    def _targets(self) -> dict[str, Target]:
        return {endpoint.incarnation: endpoint.target for endpoint in self._fleet}

    def _take_over(self, prefix: Prefix, target: Target | None) -> None:
        if target is not None:
            capacity = cache_blocks(target.load, BLOCK_BYTES / DEFAULT_BYTES_PER_TOKEN)
            self._index.shared(target.id, prefix.chain, capacity)
        self._metrics.shared_prefixes["unknown" if target is None else "received"].inc()
