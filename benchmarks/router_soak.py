"""A million distinct prompts through the router's builder and picker: memory stays bounded, decisions stay quick.

    python benchmarks/router_soak.py [--prompts 1000000] [--targets 8]

Every prompt is a chat of 2 KB, a system prompt that some share and a text of its own, and gets a decision, a first
byte and an end, with 64 in flight. Printed are the process's memory over time and the microseconds of each step of a
decision (the quickest of the slices, since other processes share the machine, and the mean).
"""

import argparse
import random
import time
from collections import deque

import msgspec
import psutil

from headwater_router.gateway.body import read_body
from headwater_router.index import PrefixIndex, PromptBuilder
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Decision, Picker, Prompt, Target
from headwater_router.picker.targets import Targets

SLICE = 2_000
IN_FLIGHT = 64
HEADERS = [
    (b"host", b"gateway"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2100"),
    (b"accept", b"*/*"),
    (b"authorization", b"Bearer key"),
    (b"user-agent", b"soak"),
]


def bodies(rng: random.Random, first: int) -> list[bytes]:
    systems = [f"System prompt {number}. " * 45 for number in range(100)]
    requests = [
        {
            "model": "m",
            "stream": True,
            "messages": [
                {"role": "system", "content": systems[rng.randrange(100)][:1000]},
                {"role": "user", "content": f"Question {number}: {rng.getrandbits(64)} {'lorem ipsum ' * 84}"},
            ],
        }
        for number in range(first, first + SLICE)
    ]
    return [msgspec.json.encode(request) for request in requests]


class Soak:
    """The state of one run; its clock is virtual, so that rates and expiry behave as in real traffic."""

    def __init__(self, targets: int) -> None:
        self.index = PrefixIndex()
        self.builder = PromptBuilder()
        self.picker: Picker = make("prefix", self.index, random.Random(0))
        self.targets = Targets(Target(f"pod-{number}") for number in range(targets))
        for target in self.targets.all:
            target.load.total_blocks, target.load.block_size = 25_000, 16
        self.open: deque[Decision] = deque()
        self.now = 0.0

    def slice(self, requests: list[bytes]) -> tuple[float, float, float]:
        """Microseconds a request to read and build, to pick, and to take its answer."""
        start = time.perf_counter()
        prompts = [self.builder.build("/v1/chat/completions", read_body(body), HEADERS, model="m") for body in requests]
        built = time.perf_counter()
        picking = sum(self._pick(prompt) for prompt in prompts)
        end = time.perf_counter()
        microseconds = 1e6 / len(requests)
        return (built - start) * microseconds, picking * microseconds, (end - built - picking) * microseconds

    def _pick(self, prompt: Prompt) -> float:
        self.now += 0.002
        start = time.perf_counter()
        self.open.append(self.picker.pick(prompt, self.targets, self.now))
        seconds = time.perf_counter() - start
        if len(self.open) > IN_FLIGHT:
            decision = self.open.popleft()
            self.picker.first_token(decision, self.now)
            self.picker.finished(decision, self.now, Outcome.ANSWERED)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--targets", type=int, default=8)
    options = parser.parse_args()
    rng = random.Random(0)
    soak = Soak(options.targets)
    process = psutil.Process()
    slices: list[tuple[float, float, float]] = []
    print("  prompts  RSS MiB  entries  build us  pick us  answer us")
    for first in range(0, options.prompts, SLICE):
        slices.append(soak.slice(bodies(rng, first)))
        done = first + SLICE
        if done % max(SLICE, options.prompts // 10) == 0 or done == SLICE:
            recent = slices[-50:]
            build, pick, answer = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            rss = process.memory_info().rss / 2**20
            entries = soak.index.size().dispatched
            print(f"{done:9} {rss:8.1f} {entries:8} {build:9.1f} {pick:8.1f} {answer:10.1f}", flush=True)
    soak.index.check()
    quickest = [min(column) for column in zip(*slices, strict=True)]
    mean = [sum(column) / len(slices) for column in zip(*slices, strict=True)]
    for name, (build, pick, answer) in {"quickest slice": quickest, "mean": mean}.items():
        print(f"{name}: build {build:.1f}, pick {pick:.1f}, answer {answer:.1f}; build + pick {build + pick:.1f} us")
    print("in flight:", [target.load.in_flight for target in soak.targets.all])


if __name__ == "__main__":
    main()
