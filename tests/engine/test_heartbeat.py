"""A step that takes minutes is seen to go on, and one that hangs is not."""

import threading
from pathlib import Path
from typing import cast

import msgspec
import pytest
import zmq

from headwater_engine.config import EngineSettings
from headwater_engine.core import heartbeat as heartbeat_module
from headwater_engine.core.heartbeat import Heartbeat
from headwater_engine.core.messages import Alive, Reply
from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels.interface import LayerCache
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.client import EngineClient
from headwater_engine.worker.layers import LayerCaches
from headwater_engine.worker.loading import load
from tests.engine.tiny import make_tiny

PROMPT = [1, 2, 3]
STEP = Step(
    1,
    left=[],
    seated=[Seat(0, PROMPT, 0, SamplingParams(max_tokens=1))],
    blocks=[(0, [0])],
    drafts=[],
    spans=[Span(0, 0, len(PROMPT), 1, 0)],
)


@pytest.mark.parametrize("family", ["qwen2", "olmo2"], ids=["native", "transformers"])
def test_each_layer_of_a_step_is_a_beat(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_KERNELS", "torch")
    folder = make_tiny(family, tmp_path, num_hidden_layers=3)
    beats = []
    settings = EngineSettings(model=str(folder), num_blocks=8, max_num_seqs=1, device="cpu", threads=1)
    loaded = load(settings, lambda fraction, phase: None, lambda: beats.append(1))
    beats.clear()
    loaded.worker.launch(STEP)
    assert len(beats) == 3


def test_a_layer_that_hangs_beats_no_more() -> None:
    heartbeat = Heartbeat("inproc://nobody")
    layers = iter(LayerCaches(cast("list[LayerCache]", [None] * 4), heartbeat.beat))
    assert not heartbeat.moved()
    for _ in range(2):
        next(layers)
        assert heartbeat.moved()
    assert not heartbeat.moved()


def test_a_beat_is_told_once_and_nothing_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "INTERVAL", 0.001)
    looks = threading.Semaphore(0)
    moved = Heartbeat.moved

    def watched(self: Heartbeat) -> bool:
        looks.release()
        return moved(self)

    monkeypatch.setattr(Heartbeat, "moved", watched)
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(endpoint := f"ipc://{tmp_path}/replies")
        heartbeat = Heartbeat(endpoint)
        heartbeat.beat()
        heartbeat.start()
        assert socket.poll(60_000)
        assert isinstance(msgspec.msgpack.decode(socket.recv(), type=Reply), Alive)
        for _ in range(50):
            assert looks.acquire(timeout=60)
        assert not socket.poll(0)


def test_a_sign_of_life_within_a_step_is_a_sign_of_life() -> None:
    client = EngineClient(EngineSettings(model="m"))
    client.heard_at = 0.0
    client._take(Alive())
    assert client.heard_at > 0.0
