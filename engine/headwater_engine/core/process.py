"""The engine process: loads the model, then turns messages from the HTTP process into steps and steps into messages.

With several ranks it is the first of them, too. Started by the HTTP process as `python -m headwater_engine.core
REQUESTS REPLIES` (two ZMQ endpoints), with the settings as JSON in HEADWATER_ENGINE_SETTINGS. It ends when told to, or
when its parent is gone.
"""

import gc
import os
import sys
import time
from collections.abc import Sequence

import msgspec
import structlog
import zmq

from headwater.events import Event
from headwater.logs import configure_logging
from headwater_engine.cache.events import EventLog, EventPublisher
from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.config import EngineSettings
from headwater_engine.core.engine import Engine
from headwater_engine.core.heartbeat import Heartbeat
from headwater_engine.core.messages import (
    Abort,
    Embed,
    Failed,
    Generate,
    Loading,
    Outputs,
    Ready,
    Reply,
    Request,
    Shutdown,
    Tokenizer,
)
from headwater_engine.core.parent import parent_lives
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.core.step import Worker
from headwater_engine.distributed.lifeline import Lifeline
from headwater_engine.distributed.place import Place
from headwater_engine.errors import DeviceError, KVCacheSizeError, LoadError, RankError
from headwater_engine.worker.loading import load
from headwater_engine.worker.rank import StepTeller, lead

log = structlog.get_logger(__name__)

STATS_INTERVAL = 0.1
"""Seconds between two Stats while there is work."""
IDLE_INTERVAL = 1.0
"""Seconds between two Stats without work; also how soon the end of the parent is noticed."""
GRAMMAR_INTERVAL = 0.001
"""Seconds between two looks whether a grammar is made, without other work."""


class Channel:
    """The two sockets to the HTTP process."""

    def __init__(self, requests: str, replies: str) -> None:
        self._context = zmq.Context()
        self._requests = self._context.socket(zmq.PULL)
        self._requests.connect(requests)
        self._replies = self._context.socket(zmq.PUSH)
        self._replies.setsockopt(zmq.SNDHWM, 0)
        self._replies.connect(replies)
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, reply: Reply) -> None:
        self._replies.send(self._encoder.encode(reply))

    def receive(self, timeout: float) -> list[Request]:
        """All messages that are there, after at most `timeout` seconds of waiting for the first."""
        messages: list[Request] = []
        while self._requests.poll(0 if messages else int(timeout * 1000)):
            messages.append(self._decoder.decode(self._requests.recv()))
        return messages

    def close(self) -> None:
        """Waits until what was sent has left, up to two seconds."""
        self._context.destroy(linger=2000)


class EngineLoop:
    """Receive, step, reply, until a Shutdown or the parent's end."""

    def __init__(
        self, engine: Engine, channel: Channel, log_of_events: EventLog | None, publisher: EventPublisher | None
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._event_log = log_of_events
        self._publisher = publisher
        self._stats_at = 0.0

    def run(self) -> None:
        while parent_lives():
            for message in self._channel.receive(self._patience()):
                match message:
                    case Generate() | Embed():
                        self._add(message)
                    case Tokenizer():
                        self._engine.know(message)
                    case Abort(ids):
                        self._engine.abort(ids)
                    case Shutdown():
                        return
            if (self._engine.has_work or self._engine.awaits_grammars) and (outputs := self._engine.step()):
                self._channel.send(Outputs(outputs))
            self._publish()
            self._report()
        log.info("the HTTP process is gone; leaving")

    def close(self) -> None:
        """What it does on threads is given up."""
        self._engine.close()

    def _patience(self) -> float:
        """Seconds that the next message may be waited for."""
        if self._engine.has_work:
            return 0.0
        return GRAMMAR_INTERVAL if self._engine.awaits_grammars else IDLE_INTERVAL

    def _add(self, message: Generate | Embed) -> None:
        refusal = self._engine.add(message)
        if refusal is not None:
            self._channel.send(Outputs([refusal]))

    def _publish(self) -> None:
        if self._publisher is None or self._event_log is None:
            return
        self._publisher.publish(self._event_log.drain())
        self._publisher.welcome(self._all_that_is_cached)

    def _all_that_is_cached(self) -> Sequence[Event]:
        cache = self._engine.scheduler.cache
        everything = EventLog(cache.block_size)
        cache.announce(everything)
        return everything.drain()

    def _report(self) -> None:
        now = time.monotonic()
        if self._patience() == IDLE_INTERVAL or now - self._stats_at >= STATS_INTERVAL:
            self._stats_at = now
            self._channel.send(self._engine.stats())


def build(
    settings: EngineSettings, channel: Channel, heartbeat: Heartbeat, place: Place | None, lifeline: Lifeline | None
) -> tuple[EngineLoop, Ready]:
    """Load the model and lay out the cache. Raises LoadError or KVCacheSizeError with a sentence for the user."""

    def tell(fraction: float, phase: str) -> None:
        channel.send(Loading(fraction, phase))

    # Before it loads for minutes: the port may be taken.
    steps = None if place is None else StepTeller(place.meeting)
    loaded = load(settings, tell, heartbeat.beat, place, lifeline)
    worker: Worker = loaded.worker
    if place is not None and steps is not None:
        tell(1.0, "other ranks")
        worker = lead(place, loaded, steps)
    event_log = EventLog(loaded.block_size) if settings.kv_events else None
    reuse = settings.prefix_cache and loaded.reuses_prompts
    cache = PrefixCache(loaded.blocks, loaded.block_size, reuse=reuse, listener=event_log)
    objective = settings.itl_objective_ms
    scheduler = Scheduler(
        cache,
        max_num_seqs=settings.max_num_seqs,
        max_batched_tokens=settings.max_batched_tokens,
        itl_objective=None if objective is None else objective / 1e3,
        whole_prompts=loaded.whole_prompts,
    )
    engine = Engine(
        scheduler,
        worker,
        max_model_len=loaded.max_model_len,
        vocab_size=loaded.vocab_size,
        depth=loaded.depth,
        checks=loaded.checks,
    )
    publisher = EventPublisher(settings.kv_events) if settings.kv_events else None
    ready = Ready(
        max_model_len=loaded.max_model_len,
        vocab_size=loaded.vocab_size,
        num_blocks=loaded.blocks,
        block_size=loaded.block_size,
        kernels=loaded.kernels,
        ranks=settings.tensor_parallel_size,
    )
    return EngineLoop(engine, channel, event_log, publisher), ready


def main(place: Place | None = None, lifeline: Lifeline | None = None) -> int:
    """`place`: of the first rank, where there are others."""
    settings = EngineSettings.model_validate_json(os.environ["HEADWATER_ENGINE_SETTINGS"])
    configure_logging(settings.log_level)
    requests, replies = sys.argv[1:]
    channel, heartbeat = Channel(requests, replies), Heartbeat(replies)
    try:
        loop, ready = build(settings, channel, heartbeat, place, lifeline)
        if lifeline is not None:
            lifeline.loaded()
        heartbeat.start()
        channel.send(ready)
        log.debug("ready", **msgspec.structs.asdict(ready))
        # What is loaded stays: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        try:
            loop.run()
        finally:
            loop.close()
    except (LoadError, KVCacheSizeError, DeviceError, RankError, ValueError, zmq.ZMQError) as error:
        if place is not None and lifeline is not None:
            lifeline.failed(str(error))  # perhaps since another rank is gone, which is for others to judge
        else:
            channel.send(Failed(str(error)))
        return 1
    finally:
        channel.close()
    return 0
