"""What a decision costs by policy and by number of endpoints, in CPU time of the thread.

    python benchmarks/picker_cost.py [--endpoints 1 8 64 512] [--policies prefix round_robin least_loaded session]

Four thousand conversations share ten system prompts, and grow by a block a turn until they are of twelve: the same
traffic however many endpoints there are, so that the index has as many blocks. Each turn gets a decision, a first token
and an end, with four in flight for each endpoint. Printed are microseconds
of the decision, and of all that is told the policy afterwards: the quickest of the slices, since other processes share
the machine, and the median.
"""

import argparse
import gc
import random
import time
from collections import deque
from statistics import median

from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import POLICIES, make
from headwater_router.picker.base import Decision, Prompt, Target
from headwater_router.picker.targets import Targets

SLICE = 400
CONVERSATIONS = 4096
BLOCK_TOKENS = 128


class Traffic:
    """Conversations in random order, each one block longer than the last time."""

    def __init__(self) -> None:
        self._rng = random.Random(0)
        self._systems = [[self._rng.getrandbits(64) for _ in range(4)] for _ in range(10)]
        self._chains = [self._begin() for _ in range(CONVERSATIONS)]

    def _begin(self) -> list[int]:
        return [*self._rng.choice(self._systems), self._rng.getrandbits(64)]

    def prompt(self) -> Prompt:
        place = self._rng.randrange(len(self._chains))
        chain = self._chains[place]
        self._chains[place] = [*chain, self._rng.getrandbits(64)] if len(chain) < 12 else self._begin()
        return Prompt("m", chain, BLOCK_TOKENS * len(chain) + 50, session=str(place))


class Run:
    """One policy among so many endpoints, in virtual time."""

    def __init__(self, policy: str, endpoints: int) -> None:
        self.picker = make(policy, PrefixIndex(), random.Random(0))
        self.targets = Targets(Target(f"pod-{number}") for number in range(endpoints))
        self.traffic = Traffic()
        self.open: deque[Decision] = deque()
        self.most_open = 4 * endpoints
        self.step = 0.1 / endpoints
        self.now = 0.0

    def slice(self) -> tuple[float, float]:
        """Microseconds of a decision, and of what follows it."""
        prompts = [self.traffic.prompt() for _ in range(SLICE)]
        picking = following = 0.0
        for prompt in prompts:
            self.now += self.step
            start = time.thread_time()
            decision = self.picker.pick(prompt, self.targets, self.now)
            picking += time.thread_time() - start
            self.open.append(decision)
            if len(self.open) > self.most_open:
                decision = self.open.popleft()
                start = time.thread_time()
                self.picker.first_token(decision, self.now)
                self.picker.finished(decision, self.now, Outcome.ANSWERED)
                following += time.thread_time() - start
        return picking / SLICE * 1e6, following / SLICE * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--slices", type=int, default=40)
    options = parser.parse_args()
    print("policy        endpoints  pick us (median)  then us (median)")
    for policy in options.policies:
        for endpoints in options.endpoints:
            run = Run(policy, endpoints)
            for _ in range(4 * CONVERSATIONS // SLICE):  # Until most conversations have been seen.
                run.slice()
            gc.collect()
            gc.freeze()
            picks, thens = zip(*[run.slice() for _ in range(options.slices)], strict=True)
            pick, then = (f"{min(each):8.1f} ({median(each):6.1f})" for each in (picks, thens))
            print(f"{policy:13} {endpoints:9} {pick} {then}", flush=True)


if __name__ == "__main__":
    main()
