"""Decoding steps on a CPU without Python between their kernels: each size is recorded when it first comes.

What `worker/graphs.py` is on a GPU. There a recording takes memory and a second, so that a few sizes are recorded
before there are requests, and others are filled up to them. Here it takes a step's time and nothing else, and a row too
many would be computed: so each size has its own, and nothing is filled up.
"""

import structlog
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, LayerCache, Recorder, Replay
from headwater_engine.kernels.recording import NotRecordableError
from headwater_engine.models.loading import Model

log = structlog.get_logger(__name__)

MOST_ROWS = 64
"""A step of more takes so long that Python's part in it is not seen."""

Place = tuple[int, ...]
"""Where all that a step is told lies, and how much of it there is."""


class RecordedModel:
    """A `Model` that runs its decoding steps as they were recorded."""

    recordable = True

    def __init__(self, model: Model, record: Recorder) -> None:
        self.config = model.config
        self.logits = model.logits
        self._model = model
        self._record: Recorder | None = record
        """None: it was seen that this model computes with more than kernels."""
        self._replays: dict[Place, Replay] = {}

    def reach(self, positions: int) -> None:
        self._replays.clear()  # they know where the rotations lay
        self._model.reach(positions)

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """As `Model.forward`. The result of a decoding step is there until the next one."""
        decodes = rows is None and batch.longest_query == 1 and len(tokens) <= MOST_ROWS
        if not decodes or self._record is None:
            return self._model.forward(tokens, batch, caches, rows)
        place = _place(tokens, batch, caches)
        if place not in self._replays:
            try:
                self._replays[place] = self._record(lambda: self._model.forward(tokens, batch, caches))
            except NotRecordableError as error:
                log.debug("decoding steps of this model are not recorded", because_of=str(error))
                self._record = None
                return self._model.forward(tokens, batch, caches)
            if len(self._replays) > MOST_ROWS:
                del self._replays[next(iter(self._replays))]
        return self._replays[place]()


def _place(tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache]) -> Place:
    told = (
        tokens,
        batch.positions,
        batch.slots,
        batch.block_tables,
        batch.query_starts,
        batch.context_lengths,
        caches[0].keys,
    )
    return (len(tokens), batch.block_tables.shape[1], *(each.data_ptr() for each in told))
