"""What of several routers' late first tokens is the moment that a message takes: one router that knows and has learned
everything, but does not see what it sent in the name of another router within the last milliseconds.

python -m benchmarks.fleet.blind [--milliseconds 0 2] [--routers 8] [--seeds 3] [--workloads unique]

That is as good as several routers can be whose messages take so long, nothing is lost, and nothing else is late. *Met*
are decisions for an endpoint that another router had chosen within that time, of all.
"""

import argparse
import random
from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

from benchmarks.fleet.figures import pooled, seen_of
from benchmarks.fleet.peers.base import Only
from benchmarks.fleet.simulation import Workload, simulate
from benchmarks.fleet.workloads import ALL
from headwater_router.index import PrefixIndex
from headwater_router.picker.base import Decision, Others, Prompt, Target
from headwater_router.picker.known import Routed, routed
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.targets import Targets

HEAD: Final = """| workload | ms | met | TTFT p50 s | p99 s | E2E mean s | p99 s |
|---|---|---|---|---|---|---|"""
_OTHERS: Final = Others(0, 0, 0)
"""There are other routers, and what they have is counted as our own."""


class Blind(PrefixPicker):
    def __init__(self, rng: random.Random, seconds: float, routers: int) -> None:
        super().__init__(PrefixIndex(), rng)
        self._seconds = seconds
        self._routers = routers
        self._whose = random.Random(routers)
        self._sent: deque[tuple[int, Routed]] = deque()
        """Within these seconds, with whose it was."""
        self.decisions = self.met = 0

    def pick(
        self, prompt: Prompt, targets: Targets | Sequence[Target], now: float, excluded: Collection[str] = ()
    ) -> Decision:
        for target in Targets.of(targets).all:
            target.load.others = _OTHERS if self._seconds else None
        while self._sent and self._sent[0][1].at <= now - self._seconds:
            self._sent.popleft()
        own = self._whose.randrange(self._routers)
        unseen = [each for whose, each in self._sent if whose != own and each.prefilling]
        for each in unseen:
            hide(each)
        found = routed(super().pick(prompt, targets, now, excluded))
        for each in unseen:
            show(each)
        self._sent.append((own, found))
        self.decisions += 1
        self.met += any(each.target is found.target for each in unseen)
        return found


def hide(found: Routed) -> None:
    """As if it had not been sent. It waits for its first token."""
    known, load = found.chosen.known, found.target.load
    del known.queue[found]
    known.backlog.work -= found.work
    if known.head is found:
        known.lead(next(iter(known.queue), None))
    load.in_flight -= 1
    load.queued -= 1
    load.prompt_tokens -= found.prompt.tokens
    found.leave()
    known.stale = True


def show(found: Routed) -> None:
    known, load = found.chosen.known, found.target.load
    queue = sorted((*known.queue, found), key=lambda each: each.at)
    known.queue.clear()
    known.queue.update(dict.fromkeys(queue))
    known.backlog.work += found.work
    if known.head is not queue[0]:
        known.lead(queue[0])
    load.in_flight += 1
    load.queued += 1
    load.prompt_tokens += found.prompt.tokens
    known.outputs += found.output
    known.waits += found.wait
    known.stale = True


def line(workload: Workload, seconds: float, routers: int, seeds: Sequence[int]) -> str:
    pickers: list[Blind] = []

    def make(rng: random.Random) -> Only:
        pickers.append(Blind(rng, seconds, routers))
        return Only(pickers[-1])

    found = pooled([seen_of(simulate(workload, make, seed=seed)) for seed in seeds])
    met = sum(each.met for each in pickers) / sum(each.decisions for each in pickers)
    first = "– | –" if found.ttft_p99 is None else f"{found.ttft_p50:.4f} | {found.ttft_p99:.4f}"
    return f"| {workload.name} | {1e3 * seconds:g} | {100 * met:.1f} % | {first} | {found.mean:.3f} | {found.p99:.2f} |"


def main() -> None:
    names = [each.name for each in ALL]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.0, 2.0])
    parser.add_argument("--routers", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 on")
    parser.add_argument("--workloads", nargs="+", default=["unique"], choices=names, metavar="NAME")
    options = parser.parse_args()
    print(HEAD)
    for workload in (each for each in ALL if each.name in options.workloads):
        for milliseconds in options.milliseconds:
            print(line(workload, milliseconds / 1e3, options.routers, range(1, options.seeds + 1)), flush=True)


if __name__ == "__main__":
    main()
