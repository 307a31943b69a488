"""One router among others: what it has to say, and what it makes of what they say. No socket, and no clock of its own.

Each router tells the prompts that its engines have answered, so that a conversation finds its prefix again through any
of them; and ten times a second what it has at each engine, and in between where that has changed, so that a burst that
comes through several of them spreads as if it came through one. Nobody depends on it: what is lost costs a prefill, not
an answer, so nothing is stored or acknowledged; prompts are told twice, and so is what changes.

All learn from the answers of all how fast engines are: each router sees but a part of them, and would be as many times
slower to find out which engines are.

A router that comes late asks the one that has listened longest for what it knows, once, and takes no more than
`_MOST_RECALLED` blocks of it, the latest first. What it has heard itself meanwhile counts as younger.

An engine is known to all routers by its pod and by when its process began (`Endpoint.incarnation`): what is said of one
that has restarted since means nothing to a router that has noticed. So several installations can use one Redis, too.
Where there are data-parallel engines behind one address, and requests are sent to each, the rank is told beside it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

import structlog
from msgspec.structs import astuple

from headwater.prefix import BLOCK_BYTES
from headwater.tally import Count
from headwater_router.index.prompt import DEFAULT_BYTES_PER_TOKEN
from headwater_router.picker.base import Load, Target
from headwater_router.picker.learned import Lesson
from headwater_router.picker.policies import Policies
from headwater_router.picker.prefix import cache_blocks
from headwater_router.picker.speed import Stretch
from headwater_router.replicas.message import (
    MOST_ENGINES,
    MOST_HELD,
    Ask,
    Changes,
    Counts,
    EngineLoad,
    Held,
    Item,
    Loads,
    MalformedError,
    Name,
    Prefix,
    Took,
    decode,
    encode,
    read,
)
from headwater_router.replicas.outbox import Outbox
from headwater_router.replicas.peers import Peers

log = structlog.get_logger(__name__)

_MESSAGE_BLOCKS: Final = 4000
"""Of one message, more or less."""
_PIECE: Final = 4000
"""Blocks and items that are taken over in one stretch: about a millisecond."""
_LESSON: Final = 40
"""Blocks that take as long as to learn from what an engine took."""
_LOADS: Final = 0.1
"""Seconds from one word on the load to the next."""
_AGAIN: Final = 0.5
"""Seconds after which a prompt is told once more: who missed it would have it computed in another place, too."""
_MOST_RECALLED: Final = 200_000
_MOST_OF_AN_ENGINE: Final = 32_768
_LATE: Final = 2.0
"""Seconds in which a router that came late hears of one that has been here for longer."""
_PATIENCE: Final = 5.0
"""Seconds until another router is asked."""
_MOST_ASKED: Final = 3
_BETWEEN_ANSWERS: Final = 2.0

Engines = Callable[[], Iterable[tuple[str, Target]]]
"""What all routers call the engines that this one knows (`Endpoint.incarnation`), each with one target, or one of each
rank, which the index knows by their ids."""


class Outgoing(NamedTuple):
    data: bytes
    prefixes: int
    """That are in it."""


class Replica:
    """Times are monotonic seconds."""

    def __init__(
        self, name: str, engines: Engines, policies: Policies, prefixes: Mapping[str, Count], malformed: Count
    ) -> None:
        """`prefixes`: counts those that were dropped, received, or of engines that are unknown here."""
        self.name = name
        self._engines = engines
        self._policies = policies
        self._index = policies.index
        self._prefixes = prefixes
        self._malformed = malformed
        self.outbox = Outbox(prefixes["dropped"])
        self._peers = Peers()
        self._since: float | None = None
        """When it began to listen."""
        self._loads_at = float("-inf")
        self._told: dict[Name, Counts] = {}
        """What was said last of each engine at which there was anything."""
        self._again: set[Name] = set()
        """Engines of which a change was said in the last message, and is in the next one, too: it may be lost."""
        self._to_repeat: deque[tuple[float, list[Prefix]]] = deque()
        """With the time from when on."""
        self._recall = _Recall()
        self._answer: deque[Held] = deque()
        self._to_tell: deque[tuple[str, Name, str, int]] = deque()
        """Whom to answer, of which engine, by both its names, and how many blocks at most."""
        self._answered_at = float("-inf")
        self._index.on_answer = self.outbox.add

    def joined(self, now: float) -> None:
        """The way to the others is open."""
        if self._since is None:
            self._since = now

    def left(self) -> None:
        """It is not any more: nothing is known of others but what the engines' gauges say."""
        self._peers = Peers()
        for _, target in self._engines():
            target.load.others = None

    def outgoing(self, now: float) -> Outgoing | None:
        """What is to be said now. To be called every few hundredths of a second while there is a way to the others."""
        names = {target.id: name for name, target in self._targets().items()}
        answered = self.outbox.take(_MESSAGE_BLOCKS)
        prefixes = [
            Prefix(names[target_id][0], chain, names[target_id][1])
            for target_id, chain in answered
            if target_id in names
        ]
        self._prefixes["dropped"].inc(len(answered) - len(prefixes))
        items: list[Item] = [*prefixes, *self._repeated(now)]
        if prefixes:
            self._to_repeat.append((now + _AGAIN, prefixes))
        loads = self._loads(now)
        changed = {name for name, load in loads.items() if self._has_changed(load)}
        if now - self._loads_at >= _LOADS:
            self._loads_at = now
            items.append(Loads(self._age(now), list(loads.values())))
            items += self._lessons(names)
            self._see_others(self._targets().items(), now)
            if (asked := self._recall.ask(self._peers.oldest(now), now, self._age(now))) is not None:
                items.append(Ask(asked))
        elif to_tell := [load for name, load in loads.items() if name in changed or name in self._again]:
            items.append(Changes(to_tell))
        self._again = changed
        self._told = {name: load.counts() for name, load in loads.items() if load.in_flight}
        if (held := self._next_held()) is not None:
            items.append(held)
        return Outgoing(encode(self.name, items), len(prefixes)) if items else None

    def incoming(self, data: bytes, now: float) -> Iterator[None]:
        """One message, whoever sent it. Works while it is iterated over, and pauses now and then."""
        try:
            message = decode(data)
        except MalformedError as error:
            self._unreadable(error)
            return
        if message.router == self.name:
            return
        self._peers.heard(message.router, now)
        targets, work = self._targets(), 0
        unreadable: MalformedError | None = None
        for raw in message.items:
            try:
                work += 1 + self._take(message.router, read(raw), targets, now)
            except MalformedError as error:
                unreadable = error
            if work >= _PIECE:
                yield
                # An endpoint that has gone meanwhile must not be believed to hold anything.
                targets, work = self._targets(), 0
        if unreadable is not None:
            self._unreadable(unreadable)

    def _targets(self) -> dict[Name, Target]:
        return {(engine, target.rank): target for engine, target in self._engines()}

    def _take(self, router: str, item: Item | None, targets: Mapping[Name, Target], now: float) -> int:
        """Gives how much work it was."""
        match item:
            case Prefix():
                self._take_prefix(item, _standing_for(item.engine, item.rank, targets))
                return len(item.chain)
            case Loads():
                self._peers.told(router, item.age, _known(item.engines, targets), now)
                return len(item.engines)
            case Changes():
                known = _known(item.engines, targets)
                self._peers.changed(router, known, now)
                self._see_others(((each.name, targets[each.name]) for each in known if each.name in targets), now)
                return len(item.engines)
            case Ask(of=self.name):
                return self._begin_answer(router, targets, now)
            case Held(to=self.name) if self._recall.wants(router, len(item.blocks)):
                if (target := _standing_for(item.engine, item.rank, targets)) is not None:
                    self._index.recalled(target.id, zip(item.blocks, item.units, strict=False), _capacity(target))
                return len(item.blocks)
            case Took():
                # What one says of a rank is not told of the whole, which does more in the same time, nor the other way.
                if (target := targets.get((item.engine, item.rank))) is not None:
                    stretch = Stretch(*item.stretch)
                    self._policies.learn(Lesson(item.deployment, item.model, target, stretch, item.seconds), now)
                return _LESSON
            case _:
                return 0

    def _take_prefix(self, prefix: Prefix, target: Target | None) -> None:
        if target is not None:
            self._index.shared(target.id, prefix.chain, _capacity(target))
        self._prefixes["unknown" if target is None else "received"].inc()

    def _loads(self, now: float) -> dict[Name, EngineLoad]:
        """Where there is anything now, or was when it was told last, or is to be told once more."""
        told, again = self._told, self._again
        busy = (
            _engine_load(name, target.load, now)
            for name, target in self._targets().items()
            if target.load.in_flight or name in told or name in again
        )
        return {load.name: load for load in islice(busy, MOST_ENGINES)}

    def _lessons(self, names: Mapping[str, Name]) -> list[Took]:
        found = ((names.get(each.target.id), each) for each in self._policies.take_lessons())
        return [
            Took(name[0], each.deployment, each.model, each.seconds, astuple(each.stretch), name[1])
            for name, each in found
            if name is not None
        ]

    def _has_changed(self, load: EngineLoad) -> bool:
        told = self._told.get(load.name)
        return load.counts() != told if told is not None else load.in_flight > 0

    def _age(self, now: float) -> float:
        return 0.0 if self._since is None else now - self._since

    def _see_others(self, engines: Iterable[tuple[Name, Target]], now: float) -> None:
        others = self._peers.others(now)
        for name, target in engines:
            if (found := others(name)) != target.load.others:
                target.load.others = found

    def _repeated(self, now: float) -> list[Prefix]:
        """At most one message's a time."""
        if self._to_repeat and self._to_repeat[0][0] <= now:
            return self._to_repeat.popleft()[1]
        return []

    def _begin_answer(self, router: str, targets: Mapping[Name, Target], now: float) -> int:
        if self._to_tell or self._answer or now - self._answered_at < _BETWEEN_ANSWERS:
            return 0
        self._answered_at = now
        most = min(_MOST_RECALLED // max(1, len(targets)), _MOST_OF_AN_ENGINE)
        self._to_tell.extend((router, name, target.id, most) for name, target in targets.items())
        return len(targets)

    def _next_held(self) -> Held | None:
        while self._to_tell and not self._answer:
            to, (engine, rank), target_id, most = self._to_tell.popleft()
            blocks = self._index.latest(target_id, most)
            for start in range(0, len(blocks), MOST_HELD):
                piece = blocks[start : start + MOST_HELD]
                self._answer.append(Held(to, engine, [key for key, _ in piece], [units for _, units in piece], rank))
        return self._answer.popleft() if self._answer else None

    def _unreadable(self, error: MalformedError) -> None:
        log.debug("message of another router could not be read, or not all of it", reason=str(error))
        self._malformed.inc()


class _Recall:
    """A router that came late, and asks."""

    def __init__(self) -> None:
        self._asked: str | None = None
        self._asked_at = float("-inf")
        self._times = 0
        self._room = _MOST_RECALLED

    def ask(self, oldest: tuple[str, float] | None, now: float, age: float) -> str | None:
        """Whom to ask now, if anybody. `oldest`: who has listened longest, and the seconds; `age`: our own."""
        late = self._times or age <= _LATE
        if not late or self._times >= _MOST_ASKED or now - self._asked_at < _PATIENCE:
            return None
        if self._room < _MOST_RECALLED or oldest is None or oldest[1] <= age + _LATE:
            return None
        self._asked, self._asked_at = oldest[0], now
        self._times += 1
        return self._asked

    def wants(self, router: str, blocks: int) -> bool:
        """Whether this was asked for, and is not too much."""
        if router != self._asked or blocks > self._room:
            return False
        self._room -= blocks
        return True


def _known(loads: Iterable[EngineLoad], targets: Mapping[Name, Target]) -> list[EngineLoad]:
    """Those of engines that are known here, be it as a whole or by their ranks."""
    engines = {engine for engine, _ in targets}
    return [each for each in loads if each.engine in engines]


def _standing_for(engine: str, rank: int | None, targets: Mapping[Name, Target]) -> Target | None:
    """The target of a rank, or of the whole while no ranks are known here. Which rank an older router means, nobody
    knows."""
    return targets.get((engine, rank)) or targets.get((engine, None))


def _engine_load(name: Name, load: Load, now: float) -> EngineLoad:
    backlog = load.backlog
    return EngineLoad(
        name[0],
        load.in_flight,
        load.queued,
        load.prefill_tokens,
        load.prompt_tokens,
        backlog.work,
        backlog.head_work,
        now - backlog.head_at if backlog.head_work else 0.0,
        now - backlog.moved_at if backlog.moved_at > float("-inf") else None,
        backlog.computed,
        name[1],
    )


def _capacity(target: Target) -> int:
    return cache_blocks(target.load, BLOCK_BYTES / DEFAULT_BYTES_PER_TOKEN)
