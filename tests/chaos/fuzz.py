"""Damaged requests, bodies, answers and KV events by the million: no failure, and no long stretch of CPU.

    python -m tests.chaos.fuzz [--count 1000000] [--seed 1]

Each case is made of its number, so one that fails is found again. The bound of a stretch is a hang guard, far above
what docs/router.md says of a body: that work goes by bytes, the tests of each part hold by counting.
"""

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from headwater.events import to_frames
from headwater.logs import configure_logging
from headwater.openai.errors import APIError
from headwater_router.gateway.beginning import Beginning, fault_of
from headwater_router.gateway.body import asking_for_usage, read_body, with_cache_salt, with_model
from headwater_router.gateway.events import StreamReader
from headwater_router.index import PrefixIndex, PromptBuilder
from headwater_router.index.feed import Feed
from headwater_router.picker.weights import conversation
from headwater_router.upstream.errors import UpstreamError
from tests.router import test_gateway_hostile_requests as requests
from tests.router import test_index_limits as events
from tests.router.indexing import exhaust
from tests.router.test_upstream_answers import PIECES
from tests.router.wires import Wires

Case = Callable[[random.Random], None]
_LONGEST: Final = 0.5
"""Seconds of CPU for one case."""
_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize")
_BODIES: Final = (
    b'{"model":"m","stream":true,"messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"Hi"}]}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"\\u00e9"},{"type":"image_url","image_url":'
    b'{"url":"data:image/png;base64,' + b"QUJD" * 300 + b'"}}]}],"model":"m","cache_salt":"s"}',
    b'{"model":"m","prompt":[1,2,3,4,5],"stream_options":{"x":1}}',
    b'{"model":"m","prompt":["a","b"],"tools":[{"type":"function"}]}',
    b'{"model":"m","input":[{"role":"user","content":"x"}],"previous_response_id":"resp_1","top_p":NaN}',
)
_TOKENS: Final = (b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"[[" * 200, b"{}," * 200, b"\xef\xbb\xbf", b"NaN",
                  b"\\ud800", b'"model":"n",', b";base64,", b"\x00", b"\xff", b"1e999", b"null",
                  b'"stream":1,')  # fmt: skip
_STREAMS: Final = (
    b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n',
    b": ping\n\n",
    b'event: error\ndata: {"error":{"code":500}}\r\n\r\n',
    b"data: [DONE]\n\n",
)


def damaged(rng: random.Random, data: bytes, tokens: tuple[bytes, ...]) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.randrange(6)):
        place = rng.randrange(len(broken) + 1)
        match rng.randrange(4):
            case 0:
                del broken[place : place + rng.randrange(9)]
            case 1:
                broken[place:place] = rng.choice(tokens)
            case 2:
                broken[place : place + 1] = rng.randbytes(rng.randrange(3))
            case _:
                broken[place:place] = broken[: rng.randrange(200)]
    return bytes(broken)


def a_request(rng: random.Random) -> None:
    data = requests.mutated(rng)
    requests.check_anything(data, [rng.randrange(len(data) + 1) for _ in range(rng.randrange(4))])


def a_body(rng: random.Random) -> None:
    data = damaged(rng, rng.choice(_BODIES), _TOKENS)
    with contextlib.suppress(APIError):
        body = read_body(data)
        prompt = PromptBuilder().build(rng.choice(_PATHS), body, [], model=body.model or "m")
        conversation(body, prompt)
        for changed in (asking_for_usage(data, body), with_model(data, body, "n"), with_cache_salt(data, body, "s")):
            if changed is not None:
                read_body(changed)


def an_answer(rng: random.Random) -> None:
    wires = Wires()
    asked = wires.ask()
    wire = wires.all[0]
    for _ in range(rng.randrange(1, 8)):
        piece = damaged(rng, rng.choice(PIECES), tuple(PIECES))
        if wire.open and piece:
            wire.send(piece)
    wires.do(rng.choice((wire.end, wire.reset)))
    if (error := asked.exception()) is None:
        asked.result().release()
    elif not isinstance(error, UpstreamError):
        raise error
    wires.close()
    wires.loop.close()


def a_stream(rng: random.Random) -> None:
    data = damaged(rng, b"".join(rng.choices(_STREAMS, k=4)), (*_TOKENS, b"\n\n", b"data:"))
    cut = rng.randrange(len(data) + 1)
    beginning, reader = Beginning(rng.choice(("", "/v1/chat/completions"))), StreamReader()
    reader.hide_usage()
    for piece in (data[:cut], data[cut:]):
        beginning.feed(piece)
        reader.feed(piece)
    reader.end()
    fault_of("/v1/chat/completions", data, whole=True)
    assert reader.usage is None or reader.usage.prompt_tokens >= 0


def kv_events() -> Case:
    recorded = [*events.recorded_payloads(), *map(msgspec.msgpack.encode, events.SGLANG)]
    values = [msgspec.msgpack.decode(payload) for payload in recorded]
    index = PrefixIndex(max_entries=4000)
    feed = Feed(index, "pod")
    sequence = 0

    def a_message(rng: random.Random) -> None:
        nonlocal sequence
        if rng.random() < 0.6:
            payload = msgspec.msgpack.encode(events.mutated(rng, rng.choice(values)))
        else:
            payload = events.damaged(rng, rng.choice(recorded))
        sequence = sequence + 1 if rng.random() < 0.95 else rng.choice([0, sequence, 2**62])
        exhaust(feed.take(to_frames(b"", sequence, payload)))
        if rng.random() < 0.001:
            index.check()

    return a_message


def kinds() -> tuple[Case, ...]:
    """Each as often as it takes its turn."""
    return a_request, a_request, a_body, a_body, a_stream, an_answer, kv_events()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    configure_logging("error")  # What is refused is logged, as it should be.
    cases = kinds()
    longest = dict.fromkeys((case.__name__ for case in cases), 0.0)
    began = time.monotonic()
    for number in range(options.count):
        case = cases[number % len(cases)]
        start = time.thread_time()
        try:
            case(random.Random(options.seed * 10**9 + number))
        except BaseException:
            print(f"WRONG: case {number}, {case.__name__}", file=sys.stderr)
            raise
        seconds = time.thread_time() - start
        longest[case.__name__] = max(longest[case.__name__], seconds)
        if seconds > _LONGEST:
            print(f"WRONG: case {number}, {case.__name__}, took {seconds:.2f} s", file=sys.stderr)
            return 1
    stretches = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in longest.items())
    print(f"{options.count} cases in {time.monotonic() - began:.0f} s; longest stretches in ms: {stretches}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
