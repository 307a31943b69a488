"""Whether the model does as the engine does: fits it to `headwater serve` on this machine, and plays one trace to both.

python -m benchmarks.fleet.real FOLDER [--port PORT]

takes a minute or two, in which the machine should have nothing else to do. FOLDER: a small model in Hugging Face's
format. PORT: of a server that runs already, as the model `bench`. Prints the constants, and the medians side by side;
fails where they are apart by more than a fifth.
"""

import argparse
import asyncio
import random
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Final

from benchmarks.fleet.__main__ import policies
from benchmarks.fleet.fit import First, Gap, fit
from benchmarks.fleet.hardware import CPU_135M, Hardware
from benchmarks.fleet.memory import BYTES
from benchmarks.fleet.requests import Request, arrivals, fresh
from benchmarks.fleet.router import Record
from benchmarks.fleet.simulation import Workload, simulate
from benchmarks.load import complete
from benchmarks.servers import free_port, server
from headwater.cli.load import Answer

_MODEL: Final = "bench"
_FIRST_TOKEN_ID, _VOCABULARY = 100, 40_000
_APART: Final = 0.2
_REQUESTS: Final = 14
"""More or less, as their arrivals are a matter of chance."""
_BUSY: Final = 0.6
"""Of the time, by what the requests take one after the other with nothing cached: so little that there is hardly a
queue, which would be twice as long where a step is a tenth longer."""

_ALONE: Final = (48, 200, 450, 900)
"""Tokens of prompts."""
_TOGETHER: Final = ((1, 32), (1, 700), (3, 64), (8, 32), (8, 200))
"""Answers, and tokens of the prompt of each."""
_OUTPUT: Final = 16
_TIMES: Final = 2


def trace(rng: random.Random, words: random.Random, seconds: float) -> Iterator[Request]:
    """Short answers, to prompts of which more than half begin with one of four texts of 384 tokens. `rng` says when and
    how long, `words` what: other ones each time, or a server that runs already has them in its cache. `seconds`: from
    one to the next, on average."""
    beginnings = [fresh(words, 384) for _ in range(4)]
    for at in arrivals(rng, 1 / seconds, _REQUESTS * seconds):
        beginning = beginnings[rng.randrange(4)] if rng.random() < 0.6 else fresh(words, 96)
        yield Request(at, beginning + fresh(words, rng.randrange(32, 320)), fresh(words, rng.randrange(16, 64)))


def apart(hardware: Hardware) -> float:
    """Seconds from one request of the trace to the next, at which the engine is as busy as it is to be."""
    requests = list(trace(random.Random("trace"), random.Random(0), 1.0))
    steps = hardware.step + hardware.decode
    each = [hardware.prefill * one.prompt_tokens + steps * one.output_tokens for one in requests]
    return fmean(each) / _BUSY


def ids_of(prompt: bytes) -> list[int]:
    """Token ids that are alike where the prompt's tokens are."""
    numbers = memoryview(prompt[: len(prompt) // BYTES * BYTES]).cast("I")
    return [_FIRST_TOKEN_ID + number % (_VOCABULARY - _FIRST_TOKEN_ID) for number in numbers]


async def measure(port: int, rng: random.Random) -> tuple[list[First], list[Gap]]:
    async def one(tokens: int, output: int) -> Answer:
        return await complete(port, _MODEL, ids_of(fresh(rng, tokens)), output)

    await asyncio.gather(*(one(256, 16) for _ in range(8)))  # warms it up
    firsts = [First(tokens, median([(await one(tokens, 2)).ttft for _ in range(_TIMES)])) for tokens in _ALONE]
    gaps = []
    for count, tokens in _TOGETHER:
        answers = await asyncio.gather(*(one(tokens, _OUTPUT) for _ in range(count)))
        gaps.append(
            Gap(count, count * (tokens + _OUTPUT / 2), median(gap for answer in answers for gap in answer.gaps))
        )
    return firsts, gaps


async def play(port: int, requests: Sequence[Request]) -> list[Answer]:
    began = time.perf_counter()

    async def send(request: Request) -> Answer:
        await asyncio.sleep(began + request.at - time.perf_counter())
        return await complete(port, _MODEL, ids_of(request.prompt), request.output_tokens)

    return list(await asyncio.gather(*map(send, requests)))


def modelled(hardware: Hardware, requests: Sequence[Request]) -> list[Record]:
    workload = Workload("trace", lambda rng: iter(requests), hardware, (1.0,))
    return simulate(workload, partial(policies, "least_loaded")).records


def compare(answers: Sequence[Answer], records: Sequence[Record]) -> bool:
    """Prints the table. Returns whether they agree."""
    sides = {
        "TTFT": ([each.ttft for each in answers], [each.ttft for each in records]),
        "between two tokens": ([each.tpot for each in answers], [each.per_token for each in records]),
        "end to end": ([each.ended - each.started for each in answers], [each.duration for each in records]),
    }
    print("| median, ms | engine | model | model / engine |\n|---|---|---|---|")
    agree = True
    for name, (real, model) in sides.items():
        ours, theirs = median(real), median(each for each in model if each is not None)
        print(f"| {name} | {1e3 * ours:.1f} | {1e3 * theirs:.1f} | {theirs / ours:.2f} |")
        agree = agree and abs(theirs / ours - 1) <= _APART
    cached = sum(each.cached_tokens for each in answers), sum(each.cached for each in records)
    print(f"| cached tokens | {cached[0]} | {cached[1]} | {cached[1] / max(cached[0], 1):.2f} |")
    return agree


def answers_to(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as reply:
            return _MODEL.encode() in reply.read()
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the model")
    parser.add_argument("--port", type=int, help="of a server that runs already")
    options = parser.parse_args()
    port, words = options.port or free_port(), random.Random()
    command = (
        f"{sys.executable} -m headwater serve {options.folder} --port {port} --dtype bfloat16 --max-model-len 2048 "
        f"--kv-cache-gib 0.5 --served-model-name {_MODEL}"
    )
    with nullcontext() if options.port else server(command, lambda: answers_to(port)):
        # Before and behind it, since machines that others share are not as quick all the time.
        firsts, gaps = asyncio.run(measure(port, words))
        seconds = apart(fit(CPU_135M, firsts, gaps))
        requests = list(trace(random.Random("trace"), words, seconds))
        answers = asyncio.run(play(port, requests))
        for told, more in zip((firsts, gaps), asyncio.run(measure(port, words)), strict=True):
            told += more  # type: ignore[operator]
    for each in (*firsts, *gaps):
        print(each)
    hardware = fit(CPU_135M, firsts, gaps)
    print(f"\n{hardware}\n\n{len(requests)} requests, one in {seconds:.2f} s:\n")
    if not compare(answers, modelled(hardware, requests)):
        raise SystemExit("the model does not agree with the engine")


if __name__ == "__main__":
    main()
