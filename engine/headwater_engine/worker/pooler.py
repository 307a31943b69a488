"""From the hidden states of a prompt, which come in one step or in several, to its vector or its score."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headwater_engine.core.step import Span
from headwater_engine.models.pooled import Head
from headwater_engine.models.pooling import Pooling


class Pooler:
    """Keeps for each seat what the steps so far have given. In float32: a mean of many is a sum at first."""

    def __init__(self, pooling: Pooling, head: Head | None, seats: int) -> None:
        self._pooling = pooling
        self._head = head
        self._kept: list[Tensor | None] = [None] * seats

    def take(self, spans: Sequence[Span], hidden: Tensor) -> Tensor:
        """Hidden states [T, H] of all tokens of `spans`: to vectors [R, size] float32 of those that are complete."""
        vectors = list(self._vectors(spans, hidden))
        if not vectors:
            return hidden.new_empty(0, 0, dtype=torch.float32)
        joined = torch.stack(vectors)
        return joined if self._head is None else self._head(joined)

    def _vectors(self, spans: Sequence[Span], hidden: Tensor) -> Iterator[Tensor]:
        first = 0
        for span in spans:
            own = hidden[first : first + span.count]
            first += span.count
            vector = self._pool(span, own)
            if not span.sampled:
                self._kept[span.seat] = vector.clone()  # no view of all that the step has given
                continue
            self._kept[span.seat] = None
            yield vector / (span.start + span.count) if self._pooling is Pooling.MEAN else vector

    def _pool(self, span: Span, own: Tensor) -> Tensor:
        """What there is of a vector once this span is computed."""
        before = None if span.start == 0 else self._kept[span.seat]
        match self._pooling:
            case Pooling.LAST:
                return own[-1].float()
            case Pooling.CLS:
                return own[0].float() if before is None else before
            case Pooling.MEAN:
                own = own.float().sum(0)
                return own if before is None else before + own
