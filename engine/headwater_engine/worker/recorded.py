"""Steps of few tokens on a CPU without Python between their kernels: each kind is recorded when it first comes.

What `worker/graphs.py` is on a GPU. There a recording takes memory and a second, so that a few sizes are recorded
before there are requests, and others are filled up to them. Here it takes a step's time and nothing else, and a row too
many would be computed: so each size has its own, and nothing is filled up. A sequence may have more than one token
here: those that its grammar forced, or the end of its prompt.
"""

import structlog
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, LayerCache, Recorder, Replay
from headwater_engine.kernels.recording import NotRecordableError
from headwater_engine.models.loading import Model

log = structlog.get_logger(__name__)

MOST_ROWS = 64
"""A step of more takes so long that Python's part in it is not seen."""
_MOST_SPARE = 16
"""Rows that give no token, which the last layer computes here, too: a tile's are read in one go with the others."""
_MOST_REPLAYS = 256
"""Some 50 KB each."""

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
        """As `Model.forward`. The result is there until the next step."""
        spare = 0 if rows is None else len(tokens) - len(rows)
        if self._record is None or len(tokens) > MOST_ROWS or spare > _MOST_SPARE:
            return self._model.forward(tokens, batch, caches, rows)
        try:
            hidden = self._recorded(self._record, tokens, batch, caches)
        except NotRecordableError as error:
            log.debug("steps of this model are not recorded", because_of=str(error))
            self._record = None
            return self._model.forward(tokens, batch, caches, rows)
        return hidden if rows is None else hidden[rows]

    def _recorded(self, record: Recorder, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache]) -> Tensor:
        place = _place(tokens, batch, caches)
        replay = self._replays.pop(place, None)
        if replay is not None:
            hidden = replay()
        else:

            def run() -> Tensor:
                nonlocal hidden
                hidden = self._model.forward(tokens, batch, caches)
                return hidden

            replay = record(run)
        self._replays[place] = replay  # the last one is the one that was used last
        if len(self._replays) > _MOST_REPLAYS:
            del self._replays[next(iter(self._replays))]
        return hidden


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
    return (len(tokens), *batch.block_tables.shape, *(each.data_ptr() for each in told))
