"""Leases: how a running request owns, shares and extends its KV blocks.

The blocks of one lease, in the order of its tokens:

    |  held in the tree, maybe with others  |  its own: full, not in the tree yet, or being filled  |
    |  table[:committed]                    |  table[committed:]                                    |
                                            ^ lease.node, the deepest node it holds

`commit` moves the border to the right as blocks fill up. Where the tree has got the same tokens from another request in
the meantime, the lease keeps its own copy (`duplicates`) and walks on along the tree's path.

A block is in exactly one place: free in the pool, in the tree, or private to one lease. `check` says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headwater_engine.cache.block_pool import BlockPool
from headwater_engine.cache.radix_tree import Node, RadixTree


class CacheListener(Protocol):
    """Is told what enters and leaves the tree, in order; KV events are made of it."""

    def stored(self, node: Node) -> None: ...

    def removed(self, node: Node) -> None: ...

    def cleared(self) -> None: ...


@dataclass(slots=True, eq=False)
class Lease:
    """The blocks of one running request. Only `PrefixCache` changes it."""

    node: Node
    table: list[int]
    committed: int
    duplicates: list[int] = field(default_factory=list)


class PrefixCache:
    """The block pool and the radix tree together. Knows no tensor: a block is a number."""

    def __init__(
        self, num_blocks: int, block_size: int, *, reuse: bool = True, listener: CacheListener | None = None
    ) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._tree = RadixTree(block_size)
        self._reuse = reuse
        self._listener = listener

    @property
    def total(self) -> int:
        return self._pool.size

    @property
    def cached(self) -> int:
        """Blocks that only the tree holds: evictable."""
        return self._tree.unheld

    @property
    def available(self) -> int:
        """Blocks that `grow` can get: free, or evictable."""
        return len(self._pool) + self._tree.unheld

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def open(self, tokens: Sequence[int], salt: str = "", *, match: bool = True) -> Lease:
        """A lease that holds the longest cached beginning of `tokens`.

        Always leaves at least the last token to compute, since its logits are wanted. With `match=False` nothing is
        taken from the cache, for a request that needs the logits of its whole prompt.
        """
        limit = (len(tokens) - 1) // self.block_size if match and self._reuse else 0
        node = self._tree.match(tokens, limit, salt)
        self._tree.hold(node)
        table = []
        step = node
        while step.parent is not None:
            table.append(step.block)
            step = step.parent
        table.reverse()
        return Lease(node, table, committed=len(table))

    def grow(self, lease: Lease, tokens: int) -> bool:
        """Make room for `tokens` tokens in all. False, and nothing changed, when there are too few blocks."""
        missing = self.blocks_for(tokens) - len(lease.table)
        if missing > 0 and missing > self.available:
            return False
        for _ in range(missing):
            lease.table.append(self._take())
        return True

    def commit(self, lease: Lease, tokens: Sequence[int], planned: int, step: int) -> None:
        """Offer the full blocks among the first `planned` tokens, which `step` computes if none before it, for reuse.

        Called when a step is planned, not when it has run: within a step every key and value is written before it is
        read, layer by layer, so a request planned later in the same step may share them already. `revoke` takes them
        back if the step fails.
        """
        if not self._reuse:
            return
        size = self.block_size
        for index in range(lease.committed, planned // size):
            key = tuple(tokens[index * size : (index + 1) * size])
            node = lease.node.children.get(key)
            if node is not None:
                lease.duplicates.append(lease.table[index])
            else:
                node = self._tree.insert(lease.node, key, lease.table[index], step)
                if self._listener is not None:
                    self._listener.stored(node)
            self._tree.hold_child(node)
            lease.node = node
            lease.committed = index + 1

    def close(self, lease: Lease) -> None:
        """Give the lease back: private blocks are free at once, those in the tree become evictable."""
        for block in lease.table[lease.committed :]:
            self._pool.give_back(block)
        for block in lease.duplicates:
            self._pool.give_back(block)
        self._tree.release(lease.node)
        lease.table = []
        lease.duplicates = []

    def revoke(self, step: int, leases: Iterable[Lease]) -> None:
        """Offer nothing any more that `step`, which failed, or one behind it was to compute.

        `leases` are all there are. Each keeps its blocks, and gets those back that the tree had from it. None of them
        may have been opened for one of these steps: it would hold blocks of others that hold nothing.
        """
        kept: set[int] = set()
        for lease in leases:
            while lease.node.born >= step:
                kept.add(self._take_back(lease))
        for node in self._tree.prune(step):
            if node.block not in kept:
                self._pool.give_back(node.block)
            if self._listener is not None:
                self._listener.removed(node)

    def _take_back(self, lease: Lease) -> int:
        """Undo the lease's last `commit` of a block, and return that block."""
        node = lease.node
        assert node.parent is not None
        lease.committed -= 1
        block = lease.table[lease.committed]
        if block != node.block:
            lease.duplicates.remove(block)
        self._tree.release_child(node)
        lease.node = node.parent
        return block

    def announce(self, listener: CacheListener) -> None:
        """Tell it everything from the start: it has missed something."""
        listener.cleared()
        for node in self._tree.walk():
            listener.stored(node)

    def _take(self) -> int:
        if not len(self._pool):
            node = self._tree.evict()
            assert node is not None, "grow counted on a block that is not there"
            self._pool.give_back(node.block)
            if self._listener is not None:
                self._listener.removed(node)
        return self._pool.take()

    def check(self, leases: Iterable[Lease]) -> None:
        """Raises AssertionError unless each taken block has exactly one owner among the tree and `leases`."""
        self._tree.check()
        owned = [node.block for node in self._tree.walk()]
        holders: dict[int, int] = {}
        for lease in leases:
            owned += lease.table[lease.committed :] + lease.duplicates
            step = lease.node
            while step.parent is not None:
                holders[id(step)] = holders.get(id(step), 0) + 1
                step = step.parent
        assert len(set(owned)) == len(owned), "a block has two owners"
        assert set(owned) == self._pool.taken, "a block is lost, or owned while free"
        for node in self._tree.walk():
            assert node.holders == holders.get(id(node), 0), "a hold that belongs to no lease"
