"""Blocks of one token cost little, and what many prompts share is kept longest."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwater.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from headwater.prefix import token_chain
from headwater_router.index import PrefixIndex
from headwater_router.index.folds import KEY_TOKENS, Fold
from headwater_router.index.stored import token_root
from tests.router.indexing import apply, token_depths

RECORDED = Path(__file__).parent.parent / "fixtures" / "sglang-0.5.23" / "kv-events.jsonl"
"""Long lists were cut to their first four and their last item."""
GONE_ON_FROM = {3: {5: -1127999946597267534}, 14: {5: -1127999946597267534, 6: 3419069284582831121}}
"""Hashes that were cut out there, which later events name as a parent: by sequence number and place."""


def chain(ids: list[int], **root: str) -> list[int]:
    return token_chain(token_root(**root), ids, KEY_TOKENS)


class Pages:
    """An engine whose blocks are one token, each named by all the tokens up to it, as SGLang does."""

    def __init__(self, *, max_entries: int = 2_000_000) -> None:
        self.index = PrefixIndex(max_entries=max_entries)
        self.sequence = 0

    def send(self, *events: Event) -> None:
        apply(self.index, "pod", self.sequence, *events)
        self.index.check()
        self.sequence += 1

    def store(self, ids: list[int], start: int = 0, *, salt: str | None = None, medium: str = "GPU") -> None:
        """A node of the engine's tree: the tokens of a prompt from `start` on."""
        parent = name(ids[:start], salt) if start else None
        names = [name(ids[: end + 1], salt) for end in range(start, len(ids))]
        self.send(BlockStored(names, parent, ids[start:], 1, None, medium, None, cache_salt=salt))

    def remove(self, ids: list[int], start: int = 0, medium: str = "GPU") -> None:
        self.send(BlockRemoved([name(ids[: end + 1], None) for end in range(start, len(ids))], medium))

    def depth(self, ids: list[int], **root: str) -> int:
        return token_depths(self.index, chain(ids, **root)).get("pod", 0)


def name(ids: list[int], salt: str | None) -> int:
    return hash((salt, *ids))


SYSTEM = list(range(100, 140))
"""Forty tokens: two spans and a half."""


def test_prompts_may_part_within_a_span() -> None:
    engine = Pages()
    first, second = [*SYSTEM, *range(200, 260)], [*SYSTEM, *range(300, 360)]
    engine.store(first)
    engine.store(second, len(SYSTEM))
    assert (engine.depth(first), engine.depth(second)) == (6, 6)
    engine.remove(first, len(SYSTEM))
    assert (engine.depth(first), engine.depth(second)) == (2, 6)
    engine.store(first, len(SYSTEM))
    assert (engine.depth(first), engine.depth(second)) == (6, 6)


def test_with_a_block_go_the_spans_of_others_that_need_it() -> None:
    engine = Pages()
    first, second = [*SYSTEM, *range(200, 260)], [*SYSTEM, *range(300, 360)]
    engine.store(first)
    engine.store(second, len(SYSTEM))
    engine.remove(SYSTEM, 36)
    assert (engine.depth(first), engine.depth(second)) == (2, 2)


def test_a_run_that_ends_within_a_span_is_completed_by_the_next() -> None:
    engine = Pages()
    ids = list(range(50))
    for end in range(1, len(ids) + 1):
        engine.store(ids[:end], end - 1)
        assert engine.depth(ids) == end // KEY_TOKENS


def test_a_copy_elsewhere_may_be_of_a_part_of_the_blocks_of_a_span() -> None:
    engine = Pages()
    ids = list(range(32))
    engine.store(ids)
    engine.store(ids[:20], medium="CPU")
    engine.remove(ids)
    assert engine.depth(ids) == 1
    engine.remove(ids[:20], medium="CPU")
    assert engine.depth(ids) == 0


def test_a_salt_is_a_key_of_each_of_the_events() -> None:
    engine = Pages()
    engine.store(SYSTEM, salt="tenant")
    engine.store([*SYSTEM, *SYSTEM], len(SYSTEM), salt="tenant")
    assert engine.depth([*SYSTEM, *SYSTEM]) == 0
    assert engine.depth([*SYSTEM, *SYSTEM], salt="tenant") == 5


def test_what_all_prompts_share_is_dropped_last_and_the_feed_says_that_it_is_not_whole() -> None:
    engine = Pages(max_entries=800)
    conversations = [[*SYSTEM, *range(1000 * number, 1000 * number + 200)] for number in range(1, 40)]
    engine.store(conversations[0])
    assert engine.index.complete("pod")
    for each in conversations[1:]:
        engine.store(each, len(SYSTEM))
    assert not engine.index.complete("pod")
    assert engine.depth(SYSTEM) == len(SYSTEM) // KEY_TOKENS
    assert engine.depth(conversations[-1]) == len(conversations[-1]) // KEY_TOKENS
    engine.send(AllBlocksCleared())
    assert engine.index.complete("pod")


def test_a_prompt_that_is_larger_than_all_room_is_kept_from_its_beginning_on() -> None:
    engine = Pages(max_entries=200)
    engine.store(list(range(2000)))
    assert engine.depth(list(range(2000))) >= 10
    assert not engine.index.complete("pod")


def test_an_engine_that_contradicts_itself_is_not_believed() -> None:
    engine = Pages()
    engine.send(BlockStored(list(range(32)), None, list(range(32)), 1, None, "GPU", None))
    engine.send(BlockStored([5, 77], None, [9, 9], 1, None, "GPU", None))
    assert engine.depth(list(range(32))) == 0
    assert not engine.index.complete("pod")


def test_what_is_not_understood_is_not_taken_for_all_that_there_is() -> None:
    engine = Pages()
    engine.send(AllBlocksCleared())
    engine.send(BlockStored([1], 99, [1], 1, None, "GPU", None))
    assert not engine.index.complete("pod")


def test_blocks_of_one_token_are_hashed_and_kept_by_the_span() -> None:
    """Counts the objects, not the time: sixteen tokens are one fold."""
    made = 0
    original = Fold.__init__

    def counted(*args: object) -> None:
        nonlocal made
        made += 1
        original(*args)  # type: ignore[arg-type]

    Fold.__init__ = counted  # type: ignore[method-assign,assignment]
    try:
        index = PrefixIndex()
        apply(index, "pod", 0, BlockStored(list(range(16_000)), None, list(range(16_000)), 1, None, "GPU", None))
    finally:
        Fold.__init__ = original  # type: ignore[method-assign]
    assert made == 1000
    assert index.size().stored == 1000


def test_a_token_takes_a_tenth_of_a_kilobyte() -> None:
    names = [hash((number, "page")) for number in range(50_000)]
    event = BlockStored(names, None, list(range(50_000)), 1, None, "GPU", None)
    index = PrefixIndex()
    tracemalloc.start()
    try:
        apply(index, "pod", 0, event)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 130 * len(names)


def whole(values: list[Any], known: dict[int, int], first: int) -> list[int]:
    """A list with what was cut out of it replaced by numbers from `first` on, but for those that are known."""
    if not any(isinstance(each, str) for each in values):
        return values
    count = int(values[4].split()[1])
    return [*values[:4], *(known.get(place, first + place) for place in range(4, count - 1)), values[-1]]


def recorded() -> Iterator[tuple[int, list[Event]]]:
    for line in RECORDED.read_text().splitlines():
        message = json.loads(line)
        sequence = message["seq"]
        events: list[Event] = []
        for fields in message["batch"][1]:
            if fields.pop("type") == "AllBlocksCleared":
                events.append(AllBlocksCleared())
                continue
            fields["block_hashes"] = whole(fields["block_hashes"], GONE_ON_FROM.get(sequence, {}), 10_000 * sequence)
            fields["token_ids"] = whole(fields["token_ids"], {}, 0)
            events.append(BlockStored(**fields, lora_name=None))
        yield sequence, events


def test_recorded_events_of_sglang_are_understood_and_keep_tenants_apart() -> None:
    index = PrefixIndex()
    prompts: dict[str, list[int]] = {}
    for sequence, events in recorded():
        apply(index, "pod", sequence, *events)
        index.check()
        for event in events:
            if isinstance(event, BlockStored) and event.parent_block_hash is None:
                prompts[event.cache_salt or ""] = event.token_ids
    assert sorted(prompts) == ["", "tenant-a"]
    assert index.size().unusable == 0
    assert index.complete("pod")
    for salt, ids in prompts.items():
        assert token_depths(index, chain(ids, salt=salt)) == {"pod": len(ids) // KEY_TOKENS}
        assert token_depths(index, chain(ids, salt="another")) == {}
