"""Steps on a CPU that are recorded as they run, and run again without Python (`recording.h`)."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headwater_engine.kernels.interface import Recorder, Replay


class NotRecordableError(Exception):
    """What was to be recorded computes with more than the kernels; the message names it."""


class _OnlyKernels(TorchDispatchMode):
    """Sees all that torch itself is asked to do, of which a recording would know nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise NotRecordableError(str(func))


def cpu_recorder(kernels: ModuleType) -> Recorder:
    """Recordings of the C++ kernels, which raise NotRecordableError.

    They share their scratch memory: only one of them runs at a time, and what it returned is there until another does.
    Weights, caches and inputs must outlive them.
    """
    scratch = kernels.Scratch()

    def record(run: Callable[[], Tensor]) -> Replay:
        recording = kernels.Recording(scratch)
        recording.begin()
        try:
            with _OnlyKernels():
                output = run()
        finally:
            recording.end()

        def replay() -> Tensor:
            recording.run()
            return output

        return replay

    return record
