"""KV events of every engine become the same keys, and stay true to what the engine holds."""

import json
from collections import deque
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headwater.events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, decode
from headwater.prefix import token_chain
from headwater_router.index import PrefixIndex
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.stored import StoredBlocks, token_root
from tests.router.indexing import apply, exhaust, token_depths

RECORDED = Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0"
IDS = list(range(1000, 1000 + 256))


def chain(ids: list[int], **root: str) -> list[int]:
    return token_chain(token_root(**root), ids, KEY_TOKENS)


def stored(
    ids: list[int],
    size: int,
    first: int = 0,
    parent: BlockHash | None = None,
    *,
    lora: str | None = None,
    extra: list[object] | None = None,
    medium: str | None = "GPU",
    group: int | None = None,
) -> BlockStored:
    names: list[BlockHash] = list(range(first, first + len(ids) // size))
    return BlockStored(names, parent, ids, size, None, medium, lora, extra, group)


class Feed:
    """One endpoint's publisher."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.sequence = 0

    def send(self, *events: BlockStored | BlockRemoved | AllBlocksCleared, rank: int = 0) -> None:
        apply(self.index, "pod", self.sequence, *events, rank=rank)
        self.index.check()
        self.sequence += 1

    def depth(self, ids: list[int], **root: str) -> int:
        return token_depths(self.index, chain(ids, **root)).get("pod", 0)


@given(size=st.sampled_from([1, 4, 8, 16, 24, 32, 128]), cut=st.integers(0, 256))
def test_engines_of_all_block_sizes_bring_the_same_keys(size: int, cut: int) -> None:
    feed = Feed()
    cut -= cut % size
    whole = len(IDS) - len(IDS) % size
    if cut:
        feed.send(stored(IDS[:cut], size))
    if whole > cut:
        feed.send(stored(IDS[cut:whole], size, first=cut // size, parent=cut // size - 1 if cut else None))
    assert feed.depth(IDS) == whole // KEY_TOKENS


def test_hashes_may_be_bytes() -> None:
    feed = Feed()
    feed.send(BlockStored([b"a", b"b"], None, IDS[:32], 16, None, "GPU", None))
    feed.send(BlockStored([b"c"], b"b", IDS[32:48], 16, None, "GPU", None))
    assert feed.depth(IDS) == 3
    feed.send(BlockRemoved([b"b"], "GPU"))
    assert feed.depth(IDS) == 1


def test_a_block_whose_parent_is_unknown_is_counted_as_unusable() -> None:
    feed = Feed()
    feed.send(stored(IDS[:32], 16, parent=99))
    assert feed.depth(IDS) == 0
    assert feed.index.size().unusable == 2


def test_tokens_that_are_not_whole_blocks_are_unusable() -> None:
    feed = Feed()
    feed.send(BlockStored([1, 2], None, IDS[:31], 16, None, "GPU", None))
    assert feed.index.size().unusable == 2


def test_salted_and_adapted_blocks_match_only_their_like() -> None:
    feed = Feed()
    feed.send(
        stored(IDS[:32], 16, extra=[["tenant"], None]),
        stored(IDS[:48], 16, first=100, lora="sql", extra=[["sql"], ["sql"], ["sql"]]),
        stored(IDS[:64], 16, first=200, lora="sql", extra=[["sql", "tenant"], ["sql"], ["sql"], ["sql"]]),
    )
    assert feed.depth(IDS) == 0
    assert feed.depth(IDS, salt="tenant") == 2
    assert feed.depth(IDS, adapter="sql") == 3
    assert feed.depth(IDS, adapter="sql", salt="tenant") == 4
    assert feed.depth(IDS, salt="other") == 0


def test_blocks_of_images_match_no_prompt_of_tokens() -> None:
    feed = Feed()
    feed.send(stored(IDS[:48], 16, extra=[None, [["image-1", 3]], None]))
    assert feed.depth(IDS) == 1


def test_a_block_is_held_until_its_last_copy_goes() -> None:
    feed = Feed()
    feed.send(stored(IDS[:16], 16), stored(IDS[:16], 16, medium="CPU"), stored(IDS[:16], 16, group=1))
    feed.send(BlockRemoved([0], "GPU"))
    assert feed.depth(IDS) == 1
    feed.send(BlockRemoved([0], "CPU"))
    assert feed.depth(IDS) == 1
    feed.send(BlockRemoved([0], "GPU", 1))
    assert feed.depth(IDS) == 0


def test_a_gap_drops_what_that_publisher_said_and_no_other() -> None:
    index = PrefixIndex()
    apply(index, "pod", 0, stored(IDS[:32], 16))
    apply(index, "pod", 0, stored(IDS[:16], 16), rank=1)
    apply(index, "pod", 2)
    assert token_depths(index, chain(IDS)) == {"pod": 1}
    assert index.size().gaps == 1
    index.check()


def test_what_the_engine_removed_is_not_expected_any_more() -> None:
    feed = Feed()
    feed.send(stored(IDS[:32], 16))
    feed.index.dispatched("pod", [], chain(IDS[:32]), 0.0, 10)
    feed.send(BlockRemoved([0, 1], "GPU"))
    assert feed.depth(IDS) == 0


def test_recorded_events_of_vllm_match_the_prompts_that_caused_them() -> None:
    index = PrefixIndex()
    lines = (RECORDED / "kv-events.jsonl").read_text().splitlines()
    tokens: dict[str, list[int]] = {}
    for line in lines:
        message = json.loads(line)
        timestamp, events, rank = message["batch"]
        batch = decode(_msgpack([timestamp, events, rank]))
        exhaust(index.apply("pod", message["seq"], batch.dp_rank, batch.events))
        for event in events:
            if event["type"] == "BlockStored":
                salt = event["extra_keys"][0][0] if event["extra_keys"][0] else ""
                tokens[salt] = event["token_ids"]
    assert tokens
    index.check()
    for salt, ids in tokens.items():
        assert token_depths(index, chain(ids, salt=salt)) == {"pod": len(ids) // KEY_TOKENS}
        assert token_depths(index, chain(ids, salt="another")) == {}


def _msgpack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


commands = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "remove", "clear", "purge"]),
        st.integers(0, 1),
        st.integers(0, 5),
        st.integers(1, 4),
    ),
    max_size=40,
)


@given(commands=commands)
def test_the_tables_agree_and_keep_their_limit_through_any_events(commands: list[tuple[str, int, int, int]]) -> None:
    table = StoredBlocks()
    for command, holder, start, length in commands:
        match command:
            case "store":
                ids = [start] * 16 * length
                event = stored(ids, 16, first=10 * start, parent=None if start < 3 else 10 * (start - 3))
                deque(table.apply(holder, 0, event, 7), maxlen=0)
            case "remove":
                deque(table.apply(holder, 0, BlockRemoved([10 * start, 10 * start + 1], "GPU"), 7), maxlen=0)
            case "clear":
                deque(table.apply(holder, 0, AllBlocksCleared(), 7), maxlen=0)
            case "purge":
                table.forget(holder)
        table.check()
        assert len(table) <= 14
