"""What endpoints hold according to their own KV events: the truth.

Engines name blocks by hashes that mean nothing outside, so each event is translated: from its token ids, and the
block that its parent's hash names, comes our own key. Our keys chain over spans of `KEY_TOKENS` tokens whatever the
engine's block size is: a block of 128 tokens has eight keys, one of 8 tokens has a key for every second block. So one
chain of a prompt serves for engines of all block sizes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from headwater.events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, Event
from headwater.prefix import root_hash, token_chain

KEY_TOKENS: Final = 16

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


class StoredBlocks:
    """Keys by holder, in a table as that of `Dispatches`."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        self.unusable = 0
        """Blocks that could not be translated: the parent is unknown, or the tokens are not whole blocks."""
        self._holders: dict[int, _Holder] = {}

    def __len__(self) -> int:
        return sum(len(holder.keys) for holder in self._holders.values())

    def apply(self, holder: int, rank: int, event: Event, capacity: int) -> Sequence[int]:
        """Take over one event; at most `capacity` keys are kept. Gives the keys that are gone by the engine's word."""
        state = self._holders.setdefault(holder, _Holder())
        match event:
            case BlockStored():
                self._store(holder, state, rank, event)
                self.trim(holder, capacity)
                return ()
            case BlockRemoved():
                return self._remove(holder, state, rank, event)
            case AllBlocksCleared():
                return self.purge(holder, rank)

    def holds(self, holder: int, key: int) -> bool:
        return bool(self.masks.get(key, 0) >> holder & 1)

    def holds_any(self, holder: int) -> bool:
        return holder in self._holders and bool(self._holders[holder].keys)

    def purge(self, holder: int, rank: int) -> Sequence[int]:
        """Drop all that this rank said it stored, and give the keys that no other rank has."""
        gone: list[int] = []
        state = self._holders.get(holder)
        if state is not None:
            for publisher in [publisher for publisher in state.blocks if publisher[0] == rank]:
                for block in state.blocks.pop(publisher).values():
                    gone += self._release(holder, state, block.keys)
        return gone

    def trim(self, holder: int, capacity: int) -> None:
        """Drop the oldest blocks until no more than `capacity` keys are left."""
        state = self._holders.get(holder)
        if state is not None:
            # Blocks of a size below the span bring no key of their own, so both are counted.
            while len(state.keys) > capacity or sum(map(len, state.blocks.values())) > capacity:
                oldest = max(state.blocks.values(), key=len).popitem(last=False)[1]
                self._release(holder, state, oldest.keys)

    def forget(self, holder: int) -> None:
        self.trim(holder, 0)
        self._holders.pop(holder, None)

    def check(self) -> None:
        """Raises AssertionError if the table, the counts and the blocks say different things."""
        masks: dict[int, int] = {}
        for holder, state in self._holders.items():
            counts: dict[int, int] = {}
            for blocks in state.blocks.values():
                for block in blocks.values():
                    assert block.media
                    assert len(block.rest) < KEY_TOKENS
                    for key in block.keys:
                        counts[key] = counts.get(key, 0) + 1
            assert counts == state.keys
            for key in counts:
                masks[key] = masks.get(key, 0) | 1 << holder
        assert masks == self.masks

    def _store(self, holder: int, state: _Holder, rank: int, event: BlockStored) -> None:
        blocks = state.blocks.setdefault((rank, event.group_idx), OrderedDict())
        size = event.block_size
        parent = _beginning(event) if event.parent_block_hash is None else blocks.get(event.parent_block_hash)
        if parent is None or len(event.token_ids) != size * len(event.block_hashes):
            self.unusable += len(event.block_hashes)
            return
        for number, name in enumerate(event.block_hashes):
            tokens = event.token_ids[number * size : (number + 1) * size]
            begins = number == 0 and event.parent_block_hash is None
            if not begins and (extra := _extra(event, number)):
                parent = replace(parent, tip=_apart(parent.tip, extra))
            block = _extend(parent, tokens, event.medium)
            known = blocks.get(name)
            if known is not None:
                block.media |= known.media
                self._release(holder, state, known.keys)
            blocks[name] = block
            self._hold(holder, state, block.keys)
            parent = block

    def _remove(self, holder: int, state: _Holder, rank: int, event: BlockRemoved) -> list[int]:
        gone: list[int] = []
        blocks = state.blocks.get((rank, event.group_idx), OrderedDict())
        for name in event.block_hashes:
            block = blocks.get(name)
            if block is not None:
                block.media.discard(event.medium)
                if not block.media:
                    del blocks[name]
                    gone += self._release(holder, state, block.keys)
        return gone

    def _hold(self, holder: int, state: _Holder, keys: Sequence[int]) -> None:
        for key in keys:
            state.keys[key] = state.keys.get(key, 0) + 1
            self.masks[key] = self.masks.get(key, 0) | 1 << holder

    def _release(self, holder: int, state: _Holder, keys: Sequence[int]) -> list[int]:
        gone = []
        for key in keys:
            state.keys[key] -= 1
            if not state.keys[key]:
                del state.keys[key]
                gone.append(key)
                left = self.masks[key] & ~(1 << holder)
                if left:
                    self.masks[key] = left
                else:
                    del self.masks[key]
        return gone


def _beginning(event: BlockStored) -> _Block:
    """What comes before a prompt's first block. The salt stands beside that block, as vLLM has it."""
    adapter = event.lora_name or (f"lora-{event.lora_id}" if event.lora_id is not None else "")
    match _extra(event, 0):
        case []:
            root = token_root(adapter=adapter)
        case [str() as salt]:
            root = token_root(adapter=adapter, salt=salt)
        case extra:
            root = _apart(token_root(adapter=adapter), extra)
    return _Block((), root, (), set())


def _extra(event: BlockStored, number: int) -> list[Any]:
    """What enters the block's hash beside its tokens and its adapter, which some engines list here again."""
    keys = event.extra_keys[number] if event.extra_keys and number < len(event.extra_keys) else None
    listed = list(keys) if isinstance(keys, list | tuple) else [] if keys is None else [keys]
    return [key for key in listed if key != event.lora_name]


def _apart(tip: int, extra: list[Any]) -> int:
    """For an image, say: its tokens are placeholders, so what follows must match no prompt of tokens alone."""
    return root_hash(repr(extra), salt=str(tip), kind="extra")


def _extend(parent: _Block, tokens: Sequence[int], medium: str | None) -> _Block:
    tail = [*parent.rest, *tokens]
    keys = token_chain(parent.tip, tail, KEY_TOKENS)
    return _Block(tuple(keys), keys[-1] if keys else parent.tip, tuple(tail[len(keys) * KEY_TOKENS :]), {medium})
