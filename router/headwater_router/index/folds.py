"""What one publisher of KV events holds, folded into spans of `KEY_TOKENS` tokens.

Engines name blocks by hashes that mean nothing outside, so each event is translated: from its token ids, and the block
that its parent's hash names, comes our own key. Our keys chain over spans of `KEY_TOKENS` tokens whatever the engine's
block size is, so one chain of a prompt serves for engines of all block sizes.

A `Fold` is the unit: a block that is at least a span long, or as many smaller ones in a row as complete a span. SGLang
has blocks of one token; sixteen of them are one fold here, with one key, and are hashed, stored and counted together.
Of each block only its name is kept, since an engine may go on from any of them, or drop any.

Folds form a tree: where two prompts part, two folds follow on one. A key is held while all blocks of its span are: with
a block go the later ones of its fold, and those that began within the same span. Where room runs out, leaves go first,
so that what many prompts share stays longest.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from headwater.events import BlockHash

KEY_TOKENS: Final = 16
TOKEN_BYTES: Final = 4
"""Of a token id in a chain: little endian, as in `headwater.prefix.token_chain`."""

_SPAN: Final = KEY_TOKENS * TOKEN_BYTES
_NAMES_OF_AN_ENTRY: Final = 3
"""Names that take as much memory as a fold with its key."""
_MOST_MEDIA: Final = 8
"""In which copies of one block may lie."""

Media = tuple[str | None, ...]
"""Where copies of a block lie, as in "GPU" and "CPU"; None: the engine does not say."""


class Position(NamedTuple):
    """Where a prompt goes on."""

    tip: int
    """The chain's hash after the last complete span."""
    rest: bytes
    """The tokens after that span."""


class Fold:
    """Blocks of one size in a row. Its names end where one of them is dropped; there are none once it is gone."""

    __slots__ = (
        "_inner",
        "after",
        "block_bytes",
        "branches",
        "children",
        "keys",
        "medium",
        "names",
        "parent",
        "shared",
    )

    def __init__(
        self, names: Sequence[BlockHash], before: Position, tokens: bytes, medium: str | None, parent: "Place | None"
    ) -> None:
        self.names = names
        self.after, self.keys = _advance(before, tokens)
        """Where a prompt goes on behind all of its blocks, and the spans that they complete."""
        self.block_bytes = len(tokens) // len(names)
        inner = tokens[: -self.block_bytes] if self.keys else tokens
        self._inner = Position(before.tip, before.rest + inner) if inner else before
        """Behind all blocks that complete nothing, which are all but the last one, or all."""
        self.medium = medium
        """Where its blocks lie, but for those of which the tree knows better."""
        self.parent = parent.fold if parent is not None else None
        self.shared = parent.number + 1 if parent is not None and before.rest else 0
        """Blocks of the parent that are needed for a span that this fold completes, up to the last such one."""
        self.children = 0
        self.branches: set[Fold] | None = None
        """Children that need some of its blocks for a span of theirs."""

    def position(self, number: int) -> Position:
        """Behind one of its blocks."""
        if number == len(self.names) - 1:
            return self.after
        later = (len(self.names) - 1 - number - bool(self.keys)) * self.block_bytes
        tip, tokens = self._inner
        return Position(tip, tokens[:-later]) if later else self._inner

    def cut(self, number: int) -> None:
        """Let it end before this block, which is not its first."""
        self.after = self._inner = self.position(number - 1)
        self.names, self.keys = self.names[:number], ()

    @property
    def weight(self) -> int:
        """Its memory, in entries of the index."""
        return 1 + len(self.names) // _NAMES_OF_AN_ENTRY


class Place(NamedTuple):
    """A block."""

    fold: Fold
    number: int
    """Within the fold."""

    @property
    def position(self) -> Position:
        """Behind it."""
        return self.fold.position(self.number)


class FoldTree:
    """The folds of one publisher."""

    def __init__(self) -> None:
        self.folds: dict[BlockHash, Fold] = {}
        """By the names of blocks. To be read only."""
        self._leaves: OrderedDict[Fold, None] = OrderedDict()
        """Folds on which nothing follows; the first are the first to go if room runs out."""
        self._copies: dict[BlockHash, Media] = {}
        """Where blocks lie that do not just lie where their folds do."""
        self._weight = 0

    @property
    def weight(self) -> int:
        """In entries of the index."""
        return self._weight + len(self._copies) // _NAMES_OF_AN_ENTRY

    def find(self, name: BlockHash) -> Place | None:
        fold = self.folds.get(name)
        return None if fold is None else Place(fold, fold.names.index(name))

    def unknown(self, names: Sequence[BlockHash]) -> int:
        """How many of these, from the first on, are new here, and no two of them the same."""
        distinct = set(names)
        if len(distinct) == len(names) and self.folds.keys().isdisjoint(distinct):
            return len(names)
        seen: set[BlockHash] = set()
        for number, name in enumerate(names):
            if name in self.folds or name in seen:
                return number
            seen.add(name)
        return len(names)

    def put(self, fold: Fold) -> None:
        """One of blocks that are new."""
        self.folds.update(dict.fromkeys(fold.names, fold))
        self._weight += fold.weight
        self._leaves[fold] = None
        parent = fold.parent
        if parent is not None:
            parent.children += 1
            self._leaves.pop(parent, None)
            if fold.shared:
                parent.branches = parent.branches or set()
                parent.branches.add(fold)

    def see(self, place: Place, again: Fold) -> bool:
        """A block that is known was stored again, as a fold of its own. Says whether it is what it was."""
        if place.position != again.after:
            return False
        fold, name = place.fold, again.names[0]
        media = self._copies.get(name, (fold.medium,))
        if again.medium not in media and len(media) < _MOST_MEDIA:
            self._copies[name] = _with(media, again.medium)
        if fold in self._leaves:
            self._leaves.move_to_end(fold)
        return True

    def remove(self, name: BlockHash, medium: str | None) -> list[int]:
        """The copy that lies there is gone. Gives the keys that go with it."""
        place = self.find(name)
        if place is None:
            return []
        media = self._copies.get(name, (place.fold.medium,))
        left = _without(media, medium)
        if left:
            if left != media:
                self._copies[name] = left
            return []
        return self.cut(place)

    def drop_oldest_leaf(self) -> list[int]:
        """Gives its keys. There must be one."""
        return self.cut(Place(next(iter(self._leaves)), 0))

    def cut(self, place: Place) -> list[int]:
        """Drop a block and what depends on it. Gives the keys that go with them."""
        lost: list[int] = []
        places = [place]
        while places:
            fold, number = places.pop()
            if number >= len(fold.names):
                continue
            lost += fold.keys
            for name in fold.names[number:]:
                self.folds.pop(name, None)
                self._copies.pop(name, None)
            for branch in fold.branches or ():
                if branch.shared > number:
                    places.append(Place(branch, 0))
            self._weight -= fold.weight
            if number:
                fold.cut(number)
                self._weight += fold.weight
            else:
                self._detach(fold)
        return lost

    def _detach(self, fold: Fold) -> None:
        fold.names, fold.keys = (), ()
        self._leaves.pop(fold, None)
        parent, fold.parent = fold.parent, None
        if parent is None:
            return
        if parent.branches is not None:
            parent.branches.discard(fold)
        parent.children -= 1
        if not parent.children and parent.names:
            # What led to the one that is gone is older than any other leaf.
            self._leaves[parent] = None
            self._leaves.move_to_end(parent, last=False)

    def check(self) -> list[int]:
        """The keys that are held. Raises AssertionError where the tables disagree."""
        folds = list(dict.fromkeys(self.folds.values()))
        children: dict[Fold, int] = {}
        for fold in folds:
            assert all(self.folds[name] is fold for name in fold.names)
            assert len(fold.after.rest) < _SPAN
            if fold.parent is not None:
                children[fold.parent] = children.get(fold.parent, 0) + 1
                assert fold.shared <= len(fold.parent.names) or not fold.parent.names
        assert sum(len(fold.names) for fold in folds) == len(self.folds)
        assert sum(fold.weight for fold in folds) == self._weight
        assert set(self._leaves) == {fold for fold in folds if not fold.children}
        assert all(fold.children == children.get(fold, 0) for fold in folds)
        assert self._copies.keys() <= self.folds.keys()
        return [key for fold in folds for key in fold.keys]


def _advance(at: Position, tokens: bytes) -> tuple[Position, tuple[int, ...]]:
    """The position behind these tokens, and the keys of the spans that they complete."""
    tip = at.tip
    stream = at.rest + tokens if at.rest else tokens
    keys = []
    end = len(stream) - len(stream) % _SPAN
    for start in range(0, end, _SPAN):
        tip = xxh3_64_intdigest(stream[start : start + _SPAN], tip)
        keys.append(tip)
    return Position(tip, stream[end:]), tuple(keys)


@lru_cache(maxsize=256)
def _with(media: Media, medium: str | None) -> Media:
    """Cached, as all blocks of an engine lie in the same few media: they share these tuples."""
    return (*media, medium)


def _without(media: Media, medium: str | None) -> Media:
    """Where it is not said which copy is gone, or where one of them lay, none is believed to be left there."""
    if medium is None:
        return ()
    return tuple(each for each in media if each is not None and each != medium)
