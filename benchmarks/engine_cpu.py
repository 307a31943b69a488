"""Our engine against vLLM on CPU: the same weights, prompts, cores and client, one server at a time, in alternation.

    python benchmarks/engine_cpu.py FOLDER [--peer COMMAND] [--rounds 3] [--dtype bfloat16] [--peer-dtype bfloat16]

FOLDER is a Hugging Face folder. COMMAND starts the peer: `{folder}`, `{port}` and `{dtype}` are filled in; the default
expects `vllm` on the PATH. Prints a Markdown table: medians over the rounds, their spread, and the ratio (above 1 is
better for us, in every row). One scenario runs beside processes that take all they get of two cores, as other pods on a
node may; a row says what is left of the tokens/s without them.
"""

import argparse
import asyncio
import random
import statistics
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import load
from servers import busy_loops, free_port, server

MODEL = "bench"
VOCABULARY = 40_000
"""Token ids are drawn below it; the model must have at least as many."""


QWENS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
"""What generation_config.json of Qwen2.5-7B-Instruct asks for."""


@dataclass(slots=True, frozen=True)
class Scenario:
    name: str
    requests: int
    concurrency: int
    prefixes: int = 0
    """Shared beginnings of 1,024 tokens, 0 for none."""
    sampling: Mapping[str, float] = field(default_factory=lambda: load.GREEDY)
    busy_loops: int = 0
    """Other processes that want a core each."""

    def prompts(self, seed: int) -> list[list[int]]:
        """256 random tokens each, behind one of the shared prefixes if there are any."""
        rng = random.Random(f"{self.name} {seed}")
        prefixes = [[rng.randrange(100, VOCABULARY) for _ in range(1024)] for _ in range(self.prefixes)]
        prompts = []
        for n in range(self.requests):
            prefix = prefixes[n % self.prefixes] if prefixes else []
            tail = 64 if prefixes else 256
            prompts.append([*prefix, *(rng.randrange(100, VOCABULARY) for _ in range(tail))])
        return prompts


QUIET = Scenario("1 concurrent", requests=4, concurrency=1)
BUSY = Scenario("1 concurrent, beside two busy loops", requests=4, concurrency=1, busy_loops=2)
SCENARIOS = (
    QUIET,
    BUSY,
    Scenario("8 concurrent", requests=24, concurrency=8),
    Scenario("32 concurrent", requests=64, concurrency=32),
    Scenario(
        "32 concurrent, temperature 0.7, top_p 0.9",
        requests=64,
        concurrency=32,
        sampling={"temperature": 0.7, "top_p": 0.9},
    ),
    Scenario("32 concurrent, Qwen's defaults", requests=64, concurrency=32, sampling=QWENS),
    Scenario("32 concurrent, 4 shared prefixes", requests=64, concurrency=32, prefixes=4),
)


def answers(port: int) -> bool:
    """Whether the model is loaded: it is listed only then by either server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as reply:
            ready = MODEL.encode() in reply.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return ready and reply.status == 200
    except OSError:
        return False


Results = dict[str, load.Summary]
"""By the scenario's name."""


def measure(command: str, seed: int) -> Results:
    port = free_port()
    results = {}
    with server(command.format(port=port), lambda: answers(port)):
        warm_up = Scenario("warm-up", requests=8, concurrency=8).prompts(seed)
        asyncio.run(load.run(port, MODEL, warm_up, max_tokens=16, concurrency=8))
        for scenario in SCENARIOS:
            prompts = scenario.prompts(seed)
            with busy_loops(scenario.busy_loops):
                results[scenario.name] = asyncio.run(
                    load.run(
                        port,
                        MODEL,
                        prompts,
                        max_tokens=64,
                        concurrency=scenario.concurrency,
                        sampling=scenario.sampling,
                    )
                )
            print(f"  {scenario.name}: {results[scenario.name]}", file=sys.stderr, flush=True)
    return results


MEASURES: tuple[tuple[str, str, float], ...] = (
    ("tokens_per_s", "output tok/s", 1.0),
    ("ttft", "TTFT ms", 1e3),
    ("inter_token", "inter-token ms", 1e3),
)


def report(rounds: list[tuple[Results, Results]]) -> None:
    print("| scenario | measure | headwater | peer | ratio | spread |")
    print("|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        for name, unit, scale in MEASURES:
            pairs = [[scale * getattr(side[scenario.name], name) for side in each] for each in rounds]
            row(scenario, unit, pairs, ".1f", more_is_better=name == "tokens_per_s")
        if scenario is BUSY:
            shares = [
                [side[BUSY.name].tokens_per_s / side[QUIET.name].tokens_per_s for side in each] for each in rounds
            ]
            row(scenario, "share of the quiet tok/s", shares, ".2f", more_is_better=True)


def row(scenario: Scenario, unit: str, pairs: list[list[float]], digits: str, *, more_is_better: bool) -> None:
    """`pairs`: of each round, ours and the peer's."""
    ratios = [ours / peer if more_is_better else peer / ours for ours, peer in pairs]
    ours, peer = (format(statistics.median(side), digits) for side in zip(*pairs, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| {scenario.name} | {unit} | {ours} | {peer} | {statistics.median(ratios):.2f} | {spread} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Hugging Face folder of the model")
    parser.add_argument(
        "--peer",
        default="vllm serve {folder} --port {port} --dtype {dtype} --max-model-len 2048 "
        f"--served-model-name {MODEL} --enable-prompt-tokens-details",
        help="command of the peer",
    )
    parser.add_argument("--dtype", default="bfloat16", help="of our weights")
    parser.add_argument("--peer-dtype", default="bfloat16", help="of the peer's")
    parser.add_argument("--rounds", type=int, default=3, help="alternations")
    parser.add_argument("--ours-only", action="store_true", help="without the peer, while tuning")
    options = parser.parse_args()
    ours = (
        f"{sys.executable} -m headwater serve {options.folder} --port {{port}} --dtype {options.dtype} "
        f"--max-model-len 2048 --served-model-name {MODEL}"
    )
    peer = options.peer.replace("{folder}", str(options.folder)).replace("{dtype}", options.peer_dtype)
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1}: headwater", file=sys.stderr, flush=True)
        mine = measure(ours, number)
        if not options.ours_only:
            print(f"round {number + 1}: peer", file=sys.stderr, flush=True)
        rounds.append((mine, mine if options.ours_only else measure(peer, number)))
    report(rounds)


if __name__ == "__main__":
    main()
