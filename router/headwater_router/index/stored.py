"""What endpoints hold according to their own KV events: the truth, for all of them in one table.

An endpoint has several publishers, each of which names blocks by hashes of its own (`index.folds`). Two of them may
hold the same content, so each key is counted. An endpoint's share of memory is kept by dropping leaves; where not all
of what a publisher said could be kept, or understood, `whole` says so until it clears its cache.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from headwater.events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, Event
from headwater.prefix import root_hash
from headwater_router.index.dispatches import unmask
from headwater_router.index.folds import (
    KEY_TOKENS,
    TOKEN_BYTES,
    Fold,
    FoldTree,
    Place,
    Position,
)

_MOST_PUBLISHERS: Final = 1024
"""Of one endpoint. Blocks of further ones are unusable."""

Publisher = tuple[int, int | None]
"""Data-parallel rank and KV-cache group: each names blocks by hashes of its own."""


def token_root(*, adapter: str = "", salt: str = "") -> int:
    """Where the chain of a prompt's token ids starts. Without the model's name, which KV events do not carry."""
    return root_hash("", adapter=adapter, salt=salt, kind="tokens")


@dataclass(slots=True)
class _Holder:
    keys: dict[int, int] = field(default_factory=dict)
    """Key to the number of folds that bring it: ranks and groups may hold the same content."""
    trees: dict[Publisher, FoldTree] = field(default_factory=dict)
    dropped: list[FoldTree] = field(default_factory=list)
    """Of nobody; their keys are still to be taken back."""
    partial: set[int] = field(default_factory=set)
    """Ranks of which the engine holds more than we know."""

    weight: int = 0
    """Of all trees, in entries of the index."""


_NOTHING: Final = FoldTree()


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
        """Take over one event; at most `capacity` entries are kept."""
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
        return holder in self._holders and any(tree.folds for tree in self._holders[holder].trees.values())

    def whole(self, holder: int, rank: int) -> bool:
        """Whether we know all that this rank said it stored."""
        state = self._holders.get(holder)
        return state is None or rank not in state.partial

    def purge(self, holder: int, rank: int) -> Iterator[Sequence[int]]:
        """Drop all that this rank said it stored."""
        state = self._holders.get(holder)
        if state is not None:
            state.partial.discard(rank)
            for publisher in [publisher for publisher in state.trees if publisher[0] == rank]:
                tree = state.trees.pop(publisher)
                state.weight -= tree.weight
                state.dropped.append(tree)
            while state.dropped:
                yield self._take_back(holder, state)

    def trim(self, holder: int, capacity: int) -> None:
        """Drop leaves until no more than `capacity` entries are left."""
        state = self._holders.get(holder)
        if state is None:
            return
        while state.dropped and len(state.keys) > capacity:
            self._take_back(holder, state)
        # Blocks of a size below the span bring no key of their own, so both are counted.
        while (excess := max(len(state.keys), state.weight) - capacity) > 0:
            (rank, _), tree = max(state.trees.items(), key=lambda item: item[1].weight)
            state.partial.add(rank)
            for _ in range(excess + len(state.trees) // 8):  # Where there are many, to choose takes long.
                if not tree.folds:
                    break
                before = tree.weight
                self._release(holder, state, tree.drop_oldest_leaf())
                state.weight += tree.weight - before

    def forget(self, holder: int) -> None:
        state = self._holders.pop(holder, None)
        if state is not None:
            for key in state.keys:
                unmask(self.masks, key, 1 << holder)

    def check(self) -> None:
        """Raises AssertionError if the table, the counts and the trees say different things."""
        masks: dict[int, int] = {}
        for holder, state in self._holders.items():
            counts: dict[int, int] = {}
            for tree in (*state.trees.values(), *state.dropped):
                for key in tree.check():
                    counts[key] = counts.get(key, 0) + 1
            assert counts == state.keys
            assert sum(tree.weight for tree in state.trees.values()) == state.weight
            for key in counts:
                masks[key] = masks.get(key, 0) | 1 << holder
        assert masks == self.masks

    def _store(self, holder: int, rank: int, event: BlockStored, capacity: int) -> Iterator[Sequence[int]]:
        state = self._holders[holder]
        tree = state.trees.get((rank, event.group_idx))
        if tree is None:
            tree = FoldTree()
        parent = None if event.parent_block_hash is None else tree.find(event.parent_block_hash)
        whole = len(event.token_ids) == event.block_size * len(event.block_hashes)
        orphan = parent is None and event.parent_block_hash is not None
        if orphan or not whole or (not tree.folds and len(state.trees) >= _MOST_PUBLISHERS):
            self._not_understood(state, rank, len(event.block_hashes))
            return
        state.trees[rank, event.group_idx] = tree
        run = _Run(event, parent)
        while run.left:
            if run.broken_off:
                state.partial.add(rank)  # There was no room for what it goes on from.
                return
            fold, known = run.read(tree)
            if not self._put(holder, state, tree, fold, known):
                self._not_understood(state, rank, run.left + 1)
                return
            run.parent = known or Place(fold, len(fold.names) - 1)
            if len(state.keys) > capacity or state.weight > capacity:
                self.trim(holder, capacity)
            yield ()

    def _not_understood(self, state: _Holder, rank: int, blocks: int) -> None:
        self.unusable += blocks
        state.partial.add(rank)

    def _put(self, holder: int, state: _Holder, tree: FoldTree, fold: Fold, known: Place | None) -> bool:
        """False: what is `known` by that name is something else. Then nothing is known by it any more."""
        self.work += 1 + len(fold.names) + len(fold.keys)
        before = tree.weight
        same = True
        if known is None:
            tree.put(fold)
            for key in fold.keys:
                state.keys[key] = state.keys.get(key, 0) + 1
                self.masks[key] = self.masks.get(key, 0) | 1 << holder
        elif not (same := tree.see(known, fold)):
            self._release(holder, state, tree.cut(known))
        state.weight += tree.weight - before
        return same

    def _remove(self, holder: int, rank: int, event: BlockRemoved) -> Iterator[Sequence[int]]:
        state = self._holders[holder]
        tree = state.trees.get((rank, event.group_idx), _NOTHING)
        for name in event.block_hashes:
            before = tree.weight
            lost = tree.remove(name, event.medium)
            state.weight += tree.weight - before
            self.work += 1
            yield self._release(holder, state, lost) if lost else ()

    def _take_back(self, holder: int, state: _Holder) -> list[int]:
        """Some keys of what nobody holds any more."""
        tree = state.dropped[-1]
        if not tree.folds:
            state.dropped.pop()
            return []
        return self._release(holder, state, tree.drop_oldest_leaf())

    def _release(self, holder: int, state: _Holder, keys: Sequence[int]) -> list[int]:
        """Gives the keys that nothing else brings."""
        self.work += 1 + len(keys)
        gone = []
        for key in keys:
            state.keys[key] -= 1
            if not state.keys[key]:
                del state.keys[key]
                gone.append(key)
                unmask(self.masks, key, 1 << holder)
        return gone


class _Run:
    """A BlockStored while it is read, fold by fold."""

    def __init__(self, event: BlockStored, parent: Place | None) -> None:
        self.parent = parent
        """The block that was read last, or the one that the first goes on from."""
        self._event = event
        self._position = parent.position if parent is not None else Position(_root(event), b"")
        self._tokens = struct.pack(f"<{len(event.token_ids)}I", *event.token_ids)
        self._width = TOKEN_BYTES * event.block_size
        self._number = 0

    @property
    def left(self) -> int:
        """Blocks to be read."""
        return len(self._event.block_hashes) - self._number

    @property
    def broken_off(self) -> bool:
        """The block that the next one follows is not held any more."""
        return self.parent is not None and self.parent.number >= len(self.parent.fold.names)

    def read(self, tree: FoldTree) -> tuple[Fold, Place | None]:
        """The next blocks, all of which are new; or one that is known, and where it is."""
        event, number = self._event, self._number
        if event.extra_keys and (number or event.parent_block_hash is not None) and _extra(event, number):
            self._position = Position(_apart(self._position.tip), self._position.rest)
        names = self._up_to_a_span()
        new = tree.unknown(names)
        names = names[: new or 1]
        self._number += len(names)
        tokens = self._tokens[self._width * number : self._width * self._number]
        fold = Fold(names, self._position, tokens, event.medium, self.parent)
        self._position = fold.after
        return fold, None if new else tree.find(names[0])

    def _up_to_a_span(self) -> Sequence[BlockHash]:
        """The names of as many blocks as complete a span, or of those that are left."""
        event, start = self._event, self._number
        count = -(-(KEY_TOKENS * TOKEN_BYTES - len(self._position.rest)) // self._width)
        names = event.block_hashes[start : start + count]
        if event.extra_keys:
            for number in range(1, len(names)):
                if _extra(event, start + number):
                    return names[:number]
        return names


def _root(event: BlockStored) -> int:
    """Where its prompt begins. The salt stands beside the first block, as vLLM has it, or beside all, as SGLang has."""
    adapter = event.lora_name or (f"lora-{event.lora_id}" if event.lora_id is not None else "")
    match _extra(event, 0):
        case []:
            return token_root(adapter=adapter, salt=event.cache_salt or "")
        case [str() as salt]:
            return token_root(adapter=adapter, salt=salt)
        case _:
            return _apart(token_root(adapter=adapter))


def _extra(event: BlockStored, number: int) -> list[Any]:
    """What enters the block's hash beside its tokens and its adapter, which some engines list here again."""
    keys = event.extra_keys[number] if event.extra_keys and number < len(event.extra_keys) else None
    listed = list(keys) if isinstance(keys, list | tuple) else [] if keys is None else [keys]
    return [key for key in listed if key != event.lora_name]


def _apart(tip: int) -> int:
    """For an image, say: its tokens are placeholders, so what follows must match no prompt of tokens alone. Which image
    does not matter, as no prompt is ever asked for with one."""
    return xxh3_64_intdigest(b"extra", tip)
