"""Ranks at work: the first one tells the others each step before it takes it itself, and all do the same.

The first rank lives in the engine process, beside the scheduler, and samples. The others are processes that hear steps,
and nothing else: with the same steps, and the tokens that the first one tells, they hold the same rows.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
import zmq

from headwater.logs import configure_logging
from headwater_engine.config import EngineSettings
from headwater_engine.core.step import Judge, Pending, Result, Step, TokenMasks, Worker
from headwater_engine.distributed.lifeline import Lifeline
from headwater_engine.distributed.place import Meeting, Place
from headwater_engine.errors import DeviceError, KVCacheSizeError, LoadError, RankError
from headwater_engine.worker.loading import Loaded, load

log = structlog.get_logger(__name__)

_LONGEST_SUBSCRIPTION: Final = 1024
"""Bytes of a message to the first rank."""


class Told(msgspec.Struct, array_like=True):
    number: int
    """From 1 on, one more each time: none may be missing."""
    what: Step | TokenMasks


class StepTeller:
    """The first rank's end: every other one gets every step, and behind it the masks that it needs."""

    def __init__(self, meeting: Meeting) -> None:
        """Raises RankError where the port is taken."""
        self._secret = meeting.secret.encode()
        # Who listens says so: what nobody listens to yet would be lost.
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            meeting.listen(self._socket, meeting.steps, _LONGEST_SUBSCRIPTION)
        except zmq.ZMQError as error:
            port = meeting.steps.rpartition(":")[2]
            raise RankError(f"steps cannot be told to other ranks on port {port}: {error.strerror}.") from error
        self._encoder = msgspec.msgpack.Encoder()
        self._told = 0

    def wait_for(self, listeners: int) -> None:
        """Until so many listen."""
        while listeners:
            listeners -= self._socket.recv() == b"\x01" + self._secret

    def tell(self, what: Step | TokenMasks) -> None:
        self._told += 1
        self._socket.send_multipart((self._secret, self._encoder.encode(Told(self._told, what))))


class StepHearer:
    """The end of another rank."""

    def __init__(self, meeting: Meeting) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, meeting.secret.encode())
        meeting.connect(self._socket, meeting.steps)
        self._decoder = msgspec.msgpack.Decoder(Told)
        self._heard = 0

    def hear(self) -> Step:
        """The next step, whenever it comes. Raises RankError where one is missing: a connection was cut for a while."""
        step = self._hear()
        assert isinstance(step, Step)
        return step

    def hear_masks(self) -> TokenMasks:
        """Those for the step that was heard last. Raises as `hear` does."""
        masks = self._hear()
        assert isinstance(masks, TokenMasks)
        return masks

    def _hear(self) -> Step | TokenMasks:
        told = self._decoder.decode(self._socket.recv_multipart()[1])
        self._heard += 1
        if told.number != self._heard:
            raise RankError(f"it missed steps {self._heard} to {told.number - 1}; the connection was cut.")
        return told.what


class LeadingWorker:
    """The first rank as the engine sees it: a worker whose every failure is the end, since the others wait for it."""

    def __init__(self, worker: Worker, steps: StepTeller) -> None:
        self._worker = worker
        self._steps = steps
        self._launched = False
        """A step of which no tokens have been chosen yet."""

    def launch(self, step: Step) -> None:
        if self._launched:
            raise RankError("the step before was given up, and the other ranks wait to hear which tokens may come.")
        self._launched = True
        self._steps.tell(step)
        with _final():
            self._worker.launch(step)

    def sample(self, masks: TokenMasks | None = None, judge: Judge | None = None) -> Pending:
        assert judge is None, "the other ranks know none"
        self._launched = False
        if masks is not None:
            self._steps.tell(masks)
        with _final():
            return _Final(self._worker.sample(masks))


@dataclass(slots=True)
class _Final:
    pending: Pending

    def wait(self) -> Result:
        with _final():
            return self.pending.wait()


@contextmanager
def _final() -> Iterator[None]:
    """Makes of whatever a step raises the end of this rank."""
    try:
        yield
    except (DeviceError, RankError):
        raise
    except Exception as error:
        log.exception("step failed")
        raise RankError(f"a step has failed: {error}") from error


def lead(place: Place, loaded: Loaded, steps: StepTeller) -> Worker:
    """The worker of the engine process, once all other ranks are as far."""
    steps.wait_for(place.size - 1)
    return LeadingWorker(loaded.worker, steps)


def follow(worker: Worker, steps: StepHearer, lifeline: Lifeline) -> None:
    """For ever. Raises RankError or DeviceError.

    Waits for results where the engine does, on both sides of a launch, so that both take each step in with the same
    rows. Which ones were known as a step was planned, only that step can tell.
    """
    under_way: deque[Pending] = deque()

    def settle(but: int) -> None:
        while len(under_way) > but:
            under_way.popleft().wait()

    while True:
        step = steps.hear()
        lifeline.working = True
        with _final():
            settle(but=step.under_way)
            worker.launch(step)
            settle(but=0)
            under_way.append(worker.sample(steps.hear_masks() if step.masked else None))
        lifeline.working = False


def main(place: Place, lifeline: Lifeline) -> int:
    settings = EngineSettings.model_validate_json(os.environ["HEADWATER_ENGINE_SETTINGS"])
    configure_logging(settings.log_level)
    try:
        loaded = load(settings, lambda fraction, phase: None, lifeline.beat, place, lifeline)
        lifeline.loaded()
        log.info("loaded", rank=place.rank, blocks=loaded.blocks, kernels=loaded.kernels)
        follow(loaded.worker, StepHearer(place.meeting), lifeline)
    except Exception as error:
        if not isinstance(error, LoadError | KVCacheSizeError | DeviceError | RankError | ValueError):
            log.exception("rank failed", rank=place.rank)
        lifeline.failed(str(error))
    return 1
