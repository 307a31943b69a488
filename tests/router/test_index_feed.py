"""Events in any order, lost, repeated, of an engine that restarts: the index never says more than the engine holds."""

import asyncio
from collections.abc import AsyncIterator
from itertools import takewhile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xxhash import xxh3_64_intdigest

from headwater.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    Frames,
    encode,
    to_frames,
)
from headwater.prefix import token_chain
from headwater_router.index import PrefixIndex
from headwater_router.index.feed import Feed, UnansweredError, catch_up
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.stored import token_root
from tests.router.indexing import exhaust, token_depths

Prompt = tuple[int, ...]
Page = tuple[Prompt, str]
"""All tokens up to its end, and where it lies."""

BRANCHES: list[Prompt] = [
    (1,) * 70,
    (1,) * 20 + (2,) * 50,
    (1,) * 20 + (3,) * 30 + (4,) * 20,
    (1,) * 32 + (5,) * 20,
    (6,) * 9,
    (6,) * 9 + (7,) * 40,
]
CHAINS = [token_chain(token_root(), prompt, KEY_TOKENS) for prompt in BRANCHES]
KEPT = 4
"""Messages that the engine can repeat."""
partly = st.sampled_from([6, 6, 6, 6, 0, 1, 2, 3])
"""Of what is repeated, every so many messages arrive; 0: none at all, 6: all."""


class Engine:
    """A prefix cache of pages, and its publisher. Where `tree` is set, only leaves go."""

    def __init__(self, page: int, *, tree: bool) -> None:
        self.page = page
        self.tree = tree
        self.held: set[Page] = set()
        self.history: dict[bytes, frozenset[Page]] = {}
        """What it held after each message, through all its lives."""
        self.messages: list[Frames] = []
        self._clock = 0.0
        self.publish(AllBlocksCleared())

    def publish(self, *events: Event) -> None:
        self._clock += 1
        payload = encode(EventBatch(self._clock, list(events)))
        self.history[payload] = frozenset(self.held)
        self.messages.append(Frames(b"", len(self.messages), payload))

    def pages(self, prompt: Prompt) -> list[Prompt]:
        return [prompt[:end] for end in range(self.page, len(prompt) + 1, self.page)]

    def store(self, prompt: Prompt, medium: str) -> None:
        """One event for each run of pages that are not there."""
        events: list[Event] = []
        run: list[Prompt] = []
        for path in [*self.pages(prompt), ()]:
            if path and (path, medium) not in self.held:
                run.append(path)
                self.held.add((path, medium))
            elif run:
                first = run[0][: -self.page]
                tokens = list(run[-1][len(first) :])
                names = [hash(each) for each in run]
                events.append(BlockStored(names, hash(first) if first else None, tokens, self.page, None, medium, None))
                run = []
        self.publish(*events)

    def evict(self, number: int, count: int) -> None:
        if not self.held:
            return
        path, medium = sorted(self.held)[number % len(self.held)]
        if not self.tree:
            self.held.remove((path, medium))
            self.publish(BlockRemoved([hash(path)], medium))
            return
        gone: list[Prompt] = []
        while path and len(gone) < count and not any(self._follows(each, path) for each, _ in self.held):
            self.held.discard((path, medium))
            gone.insert(0, path)
            if any(each == path for each, _ in self.held):
                break
            path = path[: -self.page]
        self.publish(BlockRemoved([hash(each) for each in gone], medium))

    @staticmethod
    def _follows(longer: Prompt, path: Prompt) -> bool:
        return len(longer) > len(path) and longer[: len(path)] == path

    def clear(self) -> None:
        self.held.clear()
        self.publish(AllBlocksCleared())

    def restart(self) -> None:
        self.held.clear()
        self.messages = []
        self.publish(AllBlocksCleared())


def depths(held: frozenset[Page], page: int) -> list[int]:
    """Leading spans of each prompt that lie anywhere, be it in pages that go on in another way."""
    whole = {()}
    longest = [0] * len(BRANCHES)
    for path in sorted({path for path, _ in held}, key=len):
        if path[:-page] in whole:
            whole.add(path)
            for number, prompt in enumerate(BRANCHES):
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path, prompt, strict=False)))
                longest[number] = max(longest[number], shared // KEY_TOKENS)
    return longest


class Following(RuleBasedStateMachine):
    """A router that follows an engine through a bad network."""

    @initialize(page=st.sampled_from([1, 2, 3, 8, 16, 24]), tree=st.booleans(), repeats=st.booleans())
    def start(self, page: int, tree: bool, repeats: bool) -> None:
        self.engine = Engine(page, tree=tree)
        self.repeats = repeats
        self.index = PrefixIndex()
        self.feed = Feed(self.index, "pod")
        self.seen = 0
        """Messages of this life that came, or were lost, on their way here."""
        self.connected = True
        self.feed.begin()

    @rule(
        branch=st.integers(0, len(BRANCHES) - 1), cut=st.integers(0, 30), medium=st.sampled_from(["GPU", "GPU", "CPU"])
    )
    def store(self, branch: int, cut: int, medium: str) -> None:
        prompt = BRANCHES[branch]
        self.engine.store(prompt[: len(prompt) - cut], medium)

    @rule(number=st.integers(0, 1000), count=st.integers(1, 40))
    def evict(self, number: int, count: int) -> None:
        self.engine.evict(number, count)

    @precondition(lambda self: len(self.engine.messages) > 6)
    @rule(what=st.sampled_from(["clear", "restart", "disconnect"]))
    def upset(self, what: str) -> None:
        if what == "clear":
            self.engine.clear()
            return
        if what == "restart":
            self.engine.restart()
        self.connected = False

    @precondition(lambda self: not self.connected)
    @rule(partly=partly)
    def connect(self, partly: int) -> None:
        self.connected = True
        self.feed.begin()
        if self.repeats:
            asyncio.run(self.catch_up(partly))
        self.seen = len(self.engine.messages)

    @precondition(lambda self: self.connected)
    @rule(lost=st.sampled_from([0, 0, 0, 0, 1, 2]), partly=partly, twice=st.booleans())
    def deliver(self, lost: int, partly: int, twice: bool) -> None:
        """What was published, but for the first."""
        for message in self.engine.messages[self.seen + lost :]:
            frames = to_frames(message.topic, message.seq, message.payload)
            if self.repeats and self.feed.missed(frames):
                asyncio.run(self.catch_up(partly))
            for _ in range(1 + (twice and self.repeats)):
                exhaust(self.feed.take(frames))
            self.agree()
        self.seen = max(self.seen, len(self.engine.messages))

    async def catch_up(self, partly: int) -> None:
        try:
            await catch_up(self.feed, lambda first: self.ask(first, partly))
        except UnansweredError:
            assert not partly

    async def ask(self, first: int, partly: int) -> AsyncIterator[Frames]:
        if not partly:
            raise UnansweredError
        for number, message in enumerate(each for each in self.engine.messages[-KEPT:] if each.seq >= first):
            if partly == 6 or number % partly == 0:
                yield message

    def last_heard(self) -> frozenset[Page]:
        """What the engine held after the last message that was taken."""
        if self.feed._last is None:
            return frozenset()
        digests = {xxh3_64_intdigest(payload): held for payload, held in self.engine.history.items()}
        return digests[self.feed._last_digest]

    @invariant()
    def agree(self) -> None:
        """It is never more than the engine holds, and as much where that is what the index says."""
        self.index.check()
        exact = self.engine.tree or self.engine.page >= KEY_TOKENS
        for chain, true in zip(CHAINS, depths(self.last_heard(), self.engine.page), strict=True):
            found = token_depths(self.index, chain).get("pod", 0)
            assert found <= true
            if exact and self.index.complete("pod"):
                assert found == true


Following.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestFollowing = Following.TestCase
