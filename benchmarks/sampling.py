"""The sampler alone on CPU: 32 rows of logits to tokens, by what the rows ask for.

    python benchmarks/sampling.py [--rows 32] [--threads 2]

Logits are a broad bell with forty likely tokens above it, as a language model's are. Each row has a prompt of 8,000
tokens and an answer of 500. Prints a Markdown table of medians and the least; the whole way counts, from the rows
of numbers to tokens on the host.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from headwater_engine.kernels import select
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.sampling.sampler import sample

VOCABULARIES = (49_152, 151_936)
ASKED: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "temperature 0.7, top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "Qwen2.5's defaults": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    "the same, presence_penalty 1.5": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
    "min_p 0.05": {"min_p": 0.05},
    "temperature 2, top_p 0.95": {"temperature": 2, "top_p": 0.95},
}
REPEATS = 31


def made_up_logits(rng: np.random.Generator, rows: int, vocabulary: int) -> torch.Tensor:
    logits = rng.normal(scale=2.5, size=(rows, vocabulary)).astype(np.float32)
    for row in logits:
        row[rng.integers(0, vocabulary, 40)] += np.linspace(4, 16, 40, dtype=np.float32)
    return torch.from_numpy(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kernels, rng = select(torch.float32), np.random.default_rng(0)
    print(f"{options.rows} rows, {options.threads} threads\n\n| vocabulary | asked | µs | least |\n|---|---|---|---|")
    for vocabulary in VOCABULARIES:
        logits = made_up_logits(rng, options.rows, vocabulary)
        for name, asked in ASKED.items():
            rows, everybody = SamplingRows(vocabulary, kernels.device), range(options.rows)
            for seat in range(options.rows):
                params = SamplingParams(max_tokens=1, seed=seat, **asked)  # type: ignore[arg-type]
                prompt, output = (rng.integers(0, vocabulary, count).tolist() for count in (8000, 500))
                rows.seat(seat, params, prompt, output)
            times = []
            for _ in range(REPEATS):
                fresh = logits.clone()
                begun = time.perf_counter()
                sample(kernels, fresh, rows.batch(everybody), rows.logprobs(everybody)).results()
                times.append(1e6 * (time.perf_counter() - begun))
            print(f"| {vocabulary} | {name} | {statistics.median(times):.0f} | {min(times):.0f} |", flush=True)


if __name__ == "__main__":
    main()
