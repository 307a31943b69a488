"""What endpoints hold according to their own KV events: the truth.

Engines name blocks by hashes that mean nothing outside, so each event is translated: from its token ids, and the
block that its parent's hash names, comes our own key. Our keys chain over spans of `KEY_TOKENS` tokens whatever the
engine's block size is: a block of 128 tokens has eight keys, one of 8 tokens has a key for every second block. So one
chain of a prompt serves for engines of all block sizes.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from headwater.events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, Event
from headwater.prefix import root_hash, token_chain
from headwater_router.index.dispatches import unmask

KEY_TOKENS: Final = 16

_MOST_PUBLISHERS: Final = 1024
"""Of one endpoint. Blocks of further ones are unusable."""
_MOST_MEDIA: Final = 8
"""In which copies of one block may lie."""

Publisher = tuple[int, int | None]
"""Data-parallel rank and KV-cache group: each names blocks by hashes of its own."""


def token_root(*, adapter: str = "", salt: str = "") -> int:
    """Where the chain of a prompt's token ids starts. Without the model's name, which KV events do not carry."""
    return root_hash("", adapter=adapter, salt=salt, kind="tokens")


@dataclass(slots=True)
class _Block:
    keys: tuple[int, ...]
    """Spans that this block completes."""
    tip: int
    """The chain's hash after the last complete span."""
    rest: tuple[int, ...]
    """Tokens after that span."""
    media: set[str | None]
    """Where copies lie; the block is held while there is one."""


@dataclass(slots=True)
class _Holder:
    keys: dict[int, int] = field(default_factory=dict)
    """Key to the number of blocks that bring it: ranks and groups may hold the same content."""
    blocks: dict[Publisher, OrderedDict[BlockHash, _Block]] = field(default_factory=dict)
    dropped: list[_Block] = field(default_factory=list)
    """Blocks of nobody, whose keys are still to be taken back."""
    count: int = 0
    """Of all blocks of all publishers."""
    trimmed: set[int] = field(default_factory=set)
    """Ranks of which the engine holds more than we kept."""


class StoredBlocks:
    """Keys by holder, in a table as that of `Dispatches`.

    What may take long works while it is iterated over, and adds up what it did in `work`. It gives the keys that are
    gone by the engine's word.
    """

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        self.unusable = 0
        """Blocks that could not be translated: the parent is unknown, or the tokens are not whole blocks."""
        self.work = 0
        """Blocks and keys that were looked at, for whoever wants to pause after so many."""
        self._holders: dict[int, _Holder] = {}

    def count(self, holder: int) -> int:
        state = self._holders.get(holder)
        return len(state.keys) if state is not None else 0

    def __len__(self) -> int:
        return sum(len(holder.keys) for holder in self._holders.values())

    def apply(self, holder: int, rank: int, event: Event, capacity: int) -> Iterator[Sequence[int]]:
        """Take over one event; at most `capacity` keys are kept."""
        self._holders.setdefault(holder, _Holder())
        self.work += 1
        match event:
            case BlockStored():
                return self._store(holder, rank, event, capacity)
            case BlockRemoved():
                return self._remove(holder, rank, event)
            case AllBlocksCleared():
                return self.purge(holder, rank)

    def holds(self, holder: int, key: int) -> bool:
        return bool(self.masks.get(key, 0) >> holder & 1)

    def holds_any(self, holder: int) -> bool:
        return holder in self._holders and bool(self._holders[holder].count)

    def whole(self, holder: int, rank: int) -> bool:
        """Whether we kept all that this rank said it stored."""
        state = self._holders.get(holder)
        return state is None or rank not in state.trimmed

    def purge(self, holder: int, rank: int) -> Iterator[Sequence[int]]:
        """Drop all that this rank said it stored."""
        state = self._holders.get(holder)
        if state is not None:
            state.trimmed.discard(rank)
            for publisher in [publisher for publisher in state.blocks if publisher[0] == rank]:
                blocks = state.blocks.pop(publisher)
                state.count -= len(blocks)
                state.dropped += blocks.values()
            while state.dropped:
                yield self._release(holder, state, state.dropped.pop().keys)

    def trim(self, holder: int, capacity: int) -> None:
        """Drop the oldest blocks until no more than `capacity` keys are left."""
        state = self._holders.get(holder)
        if state is None:
            return
        while state.dropped and len(state.keys) > capacity:
            self._release(holder, state, state.dropped.pop().keys)
        # Blocks of a size below the span bring no key of their own, so both are counted.
        while len(state.keys) > capacity or state.count > capacity:
            publisher, blocks = max(state.blocks.items(), key=lambda item: len(item[1]))
            state.trimmed.add(publisher[0])
            for _ in range(max(state.count - capacity, 1)):
                if not blocks:
                    break
                self._release(holder, state, blocks.popitem(last=False)[1].keys)
                state.count -= 1

    def forget(self, holder: int) -> None:
        state = self._holders.pop(holder, None)
        if state is not None:
            for key in state.keys:
                unmask(self.masks, key, 1 << holder)

    def check(self) -> None:
        """Raises AssertionError if the table, the counts and the blocks say different things."""
        masks: dict[int, int] = {}
        for holder, state in self._holders.items():
            counts: dict[int, int] = {}
            kept = [block for blocks in state.blocks.values() for block in blocks.values()]
            assert len(kept) == state.count
            for block in [*kept, *state.dropped]:
                assert block.media
                assert len(block.rest) < KEY_TOKENS
                for key in block.keys:
                    counts[key] = counts.get(key, 0) + 1
            assert counts == state.keys
            for key in counts:
                masks[key] = masks.get(key, 0) | 1 << holder
        assert masks == self.masks

    def _store(self, holder: int, rank: int, event: BlockStored, capacity: int) -> Iterator[Sequence[int]]:
        state = self._holders[holder]
        blocks = state.blocks.get((rank, event.group_idx))
        if blocks is None:
            blocks = OrderedDict()
        size = event.block_size
        parent = _beginning(event) if event.parent_block_hash is None else blocks.get(event.parent_block_hash)
        whole = len(event.token_ids) == size * len(event.block_hashes)
        if parent is None or not whole or (not blocks and len(state.blocks) >= _MOST_PUBLISHERS):
            self.unusable += len(event.block_hashes)
            return
        state.blocks[rank, event.group_idx] = blocks
        for number, name in enumerate(event.block_hashes):
            tokens = event.token_ids[number * size : (number + 1) * size]
            begins = number == 0 and event.parent_block_hash is None
            if not begins and _extra(event, number):
                parent = replace(parent, tip=_apart(parent.tip))
            parent = _extend(parent, tokens, event.medium)
            self._put(holder, state, blocks, name, parent)
            if len(state.keys) > capacity or state.count > capacity:
                self.trim(holder, capacity)
            yield ()

    def _put(
        self, holder: int, state: _Holder, blocks: OrderedDict[BlockHash, _Block], name: BlockHash, block: _Block
    ) -> None:
        known = blocks.get(name)
        if known is None:
            state.count += 1
        else:
            if len(known.media) < _MOST_MEDIA:
                block.media |= known.media
            self._release(holder, state, known.keys)
        blocks[name] = block
        self.work += 1 + len(block.keys)
        for key in block.keys:
            state.keys[key] = state.keys.get(key, 0) + 1
            self.masks[key] = self.masks.get(key, 0) | 1 << holder

    def _remove(self, holder: int, rank: int, event: BlockRemoved) -> Iterator[Sequence[int]]:
        state = self._holders[holder]
        blocks = state.blocks.get((rank, event.group_idx), OrderedDict())
        for name in event.block_hashes:
            self.work += 1
            block = blocks.get(name)
            if block is not None:
                block.media.discard(event.medium)
                if not block.media:
                    del blocks[name]
                    state.count -= 1
                    yield self._release(holder, state, block.keys)
            yield ()

    def _release(self, holder: int, state: _Holder, keys: Sequence[int]) -> list[int]:
        """Gives the keys that no other block brings."""
        self.work += 1 + len(keys)
        gone = []
        for key in keys:
            state.keys[key] -= 1
            if not state.keys[key]:
                del state.keys[key]
                gone.append(key)
                unmask(self.masks, key, 1 << holder)
        return gone


def _beginning(event: BlockStored) -> _Block:
    """What comes before a prompt's first block. The salt stands beside that block, as vLLM has it."""
    adapter = event.lora_name or (f"lora-{event.lora_id}" if event.lora_id is not None else "")
    match _extra(event, 0):
        case []:
            root = token_root(adapter=adapter)
        case [str() as salt]:
            root = token_root(adapter=adapter, salt=salt)
        case _:
            root = _apart(token_root(adapter=adapter))
    return _Block((), root, (), set())


def _extra(event: BlockStored, number: int) -> list[Any]:
    """What enters the block's hash beside its tokens and its adapter, which some engines list here again."""
    keys = event.extra_keys[number] if event.extra_keys and number < len(event.extra_keys) else None
    listed = list(keys) if isinstance(keys, list | tuple) else [] if keys is None else [keys]
    return [key for key in listed if key != event.lora_name]


def _apart(tip: int) -> int:
    """For an image, say: its tokens are placeholders, so what follows must match no prompt of tokens alone. Which image
    does not matter, as no prompt is ever asked for with one."""
    return xxh3_64_intdigest(b"extra", tip)


def _extend(parent: _Block, tokens: Sequence[int], medium: str | None) -> _Block:
    tail = [*parent.rest, *tokens]
    keys = token_chain(parent.tip, tail, KEY_TOKENS)
    return _Block(tuple(keys), keys[-1] if keys else parent.tip, tuple(tail[len(keys) * KEY_TOKENS :]), {medium})
