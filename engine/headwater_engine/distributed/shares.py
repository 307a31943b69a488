"""Who has what: the part of a dimension that a rank computes. Where it does not divide, some have one more."""

from typing import NamedTuple

from headwater_engine.errors import LoadError


class Share(NamedTuple):
    """Some of the features of a dimension, those of one rank."""

    whole: int
    """Features of the whole dimension."""
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)

    def of_heads(self, dim: int) -> "Share":
        """The share of their features, if these are heads of `dim` features."""
        return Share(self.whole * dim, self.start * dim, self.stop * dim)


def share(count: int, rank: int, ranks: int) -> Share:
    """Raises LoadError where there is nothing for some rank."""
    if count < ranks:
        raise LoadError(f"{ranks} ranks are too many for this model: one of its layers has {count} features to share.")
    return Share(count, count * rank // ranks, count * (rank + 1) // ranks)


def share_heads(queries: int, keys: int, rank: int, ranks: int) -> tuple[Share, Share]:
    """Heads of queries, and the heads of keys and values that these attend to.

    With fewer of these than ranks, some have the same one, and share the queries that belong to it. Raises LoadError
    where a rank would have no query.
    """
    group = queries // keys
    if ranks <= keys:
        own = share(keys, rank, ranks)
        return own.of_heads(group), own
    head = rank * keys // ranks
    # Those for which the line above gives this head.
    first, end = -(-head * ranks // keys), -(-(head + 1) * ranks // keys)
    if group < end - first:
        raise LoadError(f"{ranks} ranks are too many for this model: it has {queries} heads, {group} to a key.")
    part = share(group, rank - first, end - first)
    start = head * group
    return Share(queries, start + part.start, start + part.stop), Share(keys, head, head + 1)
