"""Results on their way home: in which order streams wait for one another, what is kept alive, and a GPU that fails."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.core.step import Pending, Result, Seat, Span, Step, TokenMasks
from headwater_engine.errors import DeviceError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.pending import Coming, Home, Parcel
from headwater_engine.worker.worker import ModelWorker
from tests.engine.checked_worker import Place
from tests.engine.test_overlap import Counting

CUDA = torch.device("cuda", 0)


class Streams:
    """What torch has for streams and events of a GPU; writes down who does what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.current = "computing"
        streams = self

        class Stream:
            device = CUDA

            def __init__(self, device: torch.device) -> None: ...

            def wait_stream(self, other: str) -> None:
                streams.did.append(f"home waits for {other}")

        class Event:
            def record(self, stream: Stream) -> None:
                streams.did.append(f"{streams.current} records")

            def synchronize(self) -> None:
                streams.did.append("the host waits")

        @contextmanager
        def stream(_: Stream) -> Iterator[None]:
            self.current = "home"
            yield
            self.current = "computing"

        def empty_like(tensor: Tensor, *, device: str, pin_memory: bool) -> Tensor:
            assert (device, pin_memory) == ("cpu", True), "the host would wait for a copy to any other memory"
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

        def copy(target: Tensor, source: Tensor, non_blocking: bool) -> None:
            assert non_blocking
            streams.did.append(f"{streams.current} copies")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch, "empty_like", empty_like)
        monkeypatch.setattr(Tensor, "copy_", copy)


def test_copies_home_wait_for_the_step_and_the_host_for_nothing_but_them(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    parcel = Home(CUDA).send([torch.ones(2), torch.ones(3)])
    assert streams.did == ["home waits for computing", "home copies", "home copies", "home records"]
    assert [len(each) for each in parcel.open()] == [2, 3]
    assert streams.did[4:] == ["the host waits"]


def test_what_is_copied_lives_until_it_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its memory could be given to the next step, which the copy does not know of."""
    Streams(monkeypatch)
    source = torch.ones(2)
    alive = weakref.ref(source)
    parcel = Home(CUDA).send([source])
    del source
    gc.collect()
    assert alive() is not None
    del parcel
    gc.collect()
    assert alive() is None


# A GPU that fails


class Failing:
    """Of a call: an error, that a GPU repeats when it is asked again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(torch.cuda, "synchronize", self)

    def __call__(self, *args: object, **options: object) -> Tensor:
        self.calls += 1
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")


@pytest.mark.parametrize("place", ["launch", "a replay", "sample", "a recorded sample", "the way home", "wait"])
def test_wherever_a_gpu_fails_it_is_said_and_not_tried_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ModelWorker(Counting(99), [], TorchKernels(), seats=2, longest=16, budget=16)
    same: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] = lambda run: run  # noqa: E731
    worker.record(same, [2, 1], spare_block=0, tell=lambda fraction: None)
    worker._device = CUDA
    failing = Failing(monkeypatch)
    graphs = worker._graphs
    match place:
        case "launch":
            monkeypatch.setattr(worker._kernels, "spread", failing)
        case "a replay":
            graphs._launches = dict.fromkeys(graphs._launches, failing)  # type: ignore[union-attr]
        case "sample":
            worker._graphs = None
            monkeypatch.setattr(worker._kernels, "sample", failing)
        case "a recorded sample":
            graphs._samples = dict.fromkeys(graphs._samples, failing)  # type: ignore[union-attr]
        case "the way home":
            monkeypatch.setattr(worker._home, "send", failing)
        case "wait":
            monkeypatch.setattr(Parcel, "open", failing)
    seat = Seat(0, [3], 0, SamplingParams(max_tokens=4, temperature=0))
    with pytest.raises(
        DeviceError, match=r"^The GPU has failed: CUDA error: an illegal memory access was encountered$"
    ):
        worker.launch(Step(1, [], [seat], [(0, [1])], [], [Span(0, 0, 1, 1, 0)]))
        worker.sample().wait()
    assert failing.calls == 2, "the call that failed, and the question whether the GPU goes on"


def test_what_is_no_fault_of_the_gpu_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd() -> list[Tensor]:
        raise ValueError("odd")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(Parcel, "open", lambda self: odd())
    with pytest.raises(ValueError, match="odd"):
        Coming(Parcel([], [], None), CUDA, lambda arrived: Result([])).wait()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("place", list(Place))
def test_a_failed_gpu_is_no_requests_fault(place: Place, depth: int) -> None:
    """Nothing is tried again on it: the error goes up, and ends the process."""

    class Broken:
        calls = 0

        def launch(self, step: Step) -> None:
            self.step = step
            self._fail(Place.LAUNCH)

        def sample(self, masks: TokenMasks | None = None) -> Pending:
            self._fail(Place.SAMPLE)
            return self

        def wait(self) -> Result:
            self._fail(Place.WAIT)
            return Result([[1] for _ in self.step.spans])

        def _fail(self, here: Place) -> None:
            assert self.calls == 0, "it was tried again"
            if here is place:
                self.calls += 1
                raise DeviceError("The GPU has failed: an illegal memory access was encountered")

    worker = Broken()
    scheduler = Scheduler(PrefixCache(8, 16), max_num_seqs=2, max_batched_tokens=64)
    engine = Engine(scheduler, worker, max_model_len=64, vocab_size=10, depth=depth)
    for name in "ab":
        engine.add(Generate(id=name, prompt=[1, 2], params=SamplingParams(max_tokens=3)))
    with pytest.raises(DeviceError):
        for _ in range(4):
            engine.step()
    assert worker.calls == 1
