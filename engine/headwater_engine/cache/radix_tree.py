"""The KV blocks that later requests may reuse, found by the token ids in them.

A path from a root down spells the beginning of a sequence, one full block of tokens an edge: a radix tree whose labels
are whole blocks, so that no edge is ever split. Each salt has a root of its own, and paths under different roots never
meet: that is what separates tenants.

    root "" ── [1 5 9 ...] ─┬─ [2 2 7 ...] ── [8 1 0 ...]
                            └─ [3 0 4 ...]
    root "tenant-a" ── [1 5 9 ...]

A holder of a node holds the whole path to it. A node that nobody holds has no held descendants, and is evictable once
it is a leaf; the leaf that was used longest ago goes first.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import count

Tokens = tuple[int, ...]


class Node:
    """One full block of tokens, behind the blocks of its ancestors."""

    __slots__ = ("block", "born", "children", "hash", "holders", "last_used", "parent", "salt", "tokens")

    def __init__(self, parent: "Node | None", tokens: Tokens, block: int, salt: str, born: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.salt = salt
        self.born = born
        """The step without which it would hold nothing; no child is older."""
        self.children: dict[Tokens, Node] = {}
        self.holders = 0
        self.last_used = 0
        self.hash: int | None = None
        """Set by whoever publishes KV events."""

    @property
    def is_root(self) -> bool:
        return self.parent is None


class RadixTree:
    """Knows blocks by number only; taking them from the pool and giving them back is the caller's part."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.nodes = 0
        self.unheld = 0
        """Nodes without a holder: what eviction can free, sooner or later."""
        self._roots: dict[str, Node] = {}
        self._clock = count(1)
        self._ages = count()
        self._leaves: list[tuple[int, int, Node]] = []
        """A heap of (last used, tie-breaker, node); entries that no longer hold true are skipped when popped."""

    def match(self, tokens: Sequence[int], limit: int, salt: str) -> Node:
        """The deepest node that spells the first tokens, at most `limit` blocks deep; the salt's root if none does."""
        node = self._roots.get(salt)
        if node is None:
            node = self._roots[salt] = Node(None, (), -1, salt, -1)
        size = self.block_size
        for start in range(0, limit * size, size):
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                break
            node = child
        return node

    def insert(self, parent: Node, tokens: Tokens, block: int, step: int) -> Node:
        """Hang a new node, not held yet, under `parent`, which the caller holds and which has no such child.

        Its block is filled by `step` at the latest.
        """
        node = Node(parent, tokens, block, parent.salt, max(step, parent.born))
        parent.children[tokens] = node
        self.nodes += 1
        self.unheld += 1
        return node

    def hold(self, node: Node) -> None:
        """Keep the path to `node` from eviction until `release`."""
        for step in path(node):
            self.hold_child(step)

    def hold_child(self, node: Node) -> None:
        """`hold` for a holder of the parent that moves on to this child."""
        if node.holders == 0 and not node.is_root:
            self.unheld -= 1
        node.holders += 1

    def release_child(self, node: Node) -> None:
        """`hold_child`, undone: the holder moves back to the parent."""
        node.holders -= 1
        if node.holders == 0:
            self.unheld += 1

    def release(self, node: Node) -> None:
        """End one `hold` of the path to `node`."""
        now = next(self._clock)
        for step in path(node):
            step.last_used = now
            step.holders -= 1
            if step.is_root:
                self._drop_root_if_bare(step)
            elif step.holders == 0:
                self.unheld += 1
        self._offer(node)

    def evict(self) -> Node | None:
        """Remove and return the unheld leaf that was used longest ago; None if all are held."""
        while self._leaves:
            last_used, _, node = heapq.heappop(self._leaves)
            if self._evictable(node) and node.last_used == last_used:
                self._remove(node)
                return node
        return None

    def prune(self, step: int) -> list[Node]:
        """Remove and return all nodes born in `step` or later, which nobody holds; children come before parents."""
        pruned = [node for node in self.walk() if node.born >= step][::-1]
        for node in pruned:
            self._remove(node)
        return pruned

    def _evictable(self, node: Node) -> bool:
        return node.holders == 0 and not node.children and node.parent is not None

    def _offer(self, node: Node) -> None:
        if not self._evictable(node):
            return
        heapq.heappush(self._leaves, (node.last_used, next(self._ages), node))
        if len(self._leaves) > 2 * self.nodes + 64:
            self._leaves = [(age, n, node) for age, n, node in self._leaves if self._current(age, node)]
            heapq.heapify(self._leaves)

    def _current(self, age: int, node: Node) -> bool:
        return self._evictable(node) and node.last_used == age

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        node.parent = None
        self.nodes -= 1
        self.unheld -= 1
        if parent.is_root:
            self._drop_root_if_bare(parent)
        else:
            self._offer(parent)

    def _drop_root_if_bare(self, root: Node) -> None:
        """A root is made for each salt that comes by, so one that leads nowhere must go again."""
        if root.holders == 0 and not root.children:
            self._roots.pop(root.salt, None)

    def walk(self) -> Iterator[Node]:
        """All nodes but the roots, parents before children."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Raises AssertionError where the tree contradicts itself."""
        nodes = list(self.walk())
        assert len(nodes) == self.nodes
        assert sum(node.holders == 0 for node in nodes) == self.unheld
        assert len({node.block for node in nodes}) == len(nodes), "two nodes own one block"
        offered = {id(node) for age, _, node in self._leaves if self._current(age, node)}
        for node in nodes:
            assert node.parent is not None and len(node.tokens) == self.block_size
            assert node.holders >= sum(child.holders for child in node.children.values())
            assert node.born >= node.parent.born, "a child that is older than its parent"
            assert not self._evictable(node) or id(node) in offered, "an evictable leaf that eviction does not know"
        assert all(root.children or root.holders for root in self._roots.values()), "a bare root stays"


def path(node: Node) -> Iterator[Node]:
    """From the node up, its root included."""
    step: Node | None = node
    while step is not None:
        yield step
        step = step.parent
