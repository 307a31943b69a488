"""The free KV blocks. A block is just a number; what lies in it is known to the kernels and to whoever took it."""


class BlockPool:
    """Blocks 0 to `size - 1`; the one given back last is taken first, since its memory is warmest."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a pool needs at least one block, not {size}")
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._taken = bytearray(size)

    def __len__(self) -> int:
        """Blocks that are free now."""
        return len(self._free)

    def take(self) -> int:
        """A free block. Raises IndexError when there is none."""
        block = self._free.pop()
        self._taken[block] = 1
        return block

    def give_back(self, block: int) -> None:
        """Raises ValueError for a block that is free already: two owners would share it unknowingly."""
        if not self._taken[block]:
            raise ValueError(f"block {block} is free already")
        self._taken[block] = 0
        self._free.append(block)

    @property
    def taken(self) -> set[int]:
        """For checks; walks the whole pool."""
        return {block for block, is_taken in enumerate(self._taken) if is_taken}
