"""A worker that makes vectors of prompts: the steps are those of a model that generates, and nothing is sampled."""

from functools import partial

import torch
from torch import Tensor

from headwater_engine.core.step import Judge, Pending, Result, Step, TokenMasks
from headwater_engine.kernels.interface import Kernels, LayerCache
from headwater_engine.models.loading import HiddenStates
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.worker.device import device_checked
from headwater_engine.worker.inputs import Inputs
from headwater_engine.worker.pending import Coming, Home
from headwater_engine.worker.pooler import Pooler
from headwater_engine.worker.seats import Seats


class PoolingWorker:
    """Whoever sits on a seat gets its vector from the step that computes its last token."""

    def __init__(
        self,
        model: HiddenStates,
        pooler: Pooler,
        caches: list[LayerCache],
        kernels: Kernels,
        *,
        seats: int,
        longest: int,
        budget: int,
    ) -> None:
        """As of `ModelWorker`; `pooler` is for so many seats."""
        self._model = model
        self._pooler = pooler
        model.reach(longest)
        self._caches = caches
        self._device = kernels.device
        self._seats = Seats(seats, longest, kernels.device)
        self._rows = SamplingRows(model.config.vocab_size, kernels.device)
        mark = torch.cuda.Event if kernels.device.type == "cuda" else None
        self._inputs = Inputs(kernels, self._seats, budget, mark)
        self._home = Home(kernels.device)
        self._launched: tuple[Step, Tensor] | None = None

    @torch.inference_mode()
    def launch(self, step: Step) -> None:
        self._seats.take(step)
        for index in step.left:
            self._rows.leave(index)
        for seat in step.seated:  # since a step is laid out with numbers for sampling
            self._rows.seat(seat.index, seat.sampling, seat.tokens)
        with device_checked(self._device):
            batch = self._inputs.lay_out(step.spans, self._rows)
            hidden = self._model.forward(batch.flat.tokens, batch.flat.attention, self._caches)
            self._launched = step, hidden

    @torch.inference_mode()
    def sample(self, masks: TokenMasks | None = None, judge: Judge | None = None) -> Pending:
        launched, self._launched = self._launched, None
        assert launched is not None, "one sample for each launch"
        step, hidden = launched
        with device_checked(self._device):
            parcel = self._home.send([self._pooler.take(step.spans, hidden)])
        return Coming(parcel, self._device, partial(_read, step))


def _read(step: Step, arrived: list[Tensor]) -> Result:
    result = Result([[] for _ in step.spans])
    complete = [place for place, span in enumerate(step.spans) if span.sampled]
    for place, vector in zip(complete, arrived[0], strict=True):
        result.vectors[place] = vector.numpy().tobytes()
    return result
