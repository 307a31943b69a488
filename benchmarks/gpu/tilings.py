"""What attention makes of every sensible tiling, for whoever changes `choose_tiling`: nothing is tried out at run time.

    python benchmarks/gpu/tilings.py --compile 0 12     # a twelfth of the kernels into Triton's cache; twelve at once
    python benchmarks/gpu/tilings.py

For each shape of a batch the ten fastest, and what is chosen.
"""

import argparse
import itertools
import json
from collections.abc import Iterator

import shapes
import torch
from measure import OUT, copies_of, seconds
from shapes import DIM, KV_BYTES, KV_HEADS
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.kernels.triton.attention import paged_attention
from headwater_engine.kernels.triton.tiling import Tiling, choose_tiling

DECODE = [(1, 1024), (1, 8192), (8, 1024), (32, 1024), (32, 8192), (128, 1024), (256, 1024)]
PROMPTS = [(2048, 2048), (8192, 8192), (2048, 8192), (64, 8192)]
PROCESSORS = shapes.kernels()._processors
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def decode_tilings() -> Iterator[Tiling]:
    for keys, warps, stages in itertools.product((32, 64, 128), (1, 2, 4, 8), (2, 3, 4, 5)):
        if keys * stages <= 384 and keys >= 16 * warps // 2:
            yield Tiling(16, keys, 1, warps, stages)


def prompt_tilings() -> Iterator[Tiling]:
    for rows, keys, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        if rows >= 16 * warps // 2 and keys * stages <= 256:
            yield Tiling(rows, keys, 1, warps, stages)


def attend(queries: Tensor, cache: LayerCache, batch: AttentionBatch, tiling: Tiling) -> Tensor:
    return paged_attention(
        queries,
        cache,
        batch,
        scale=DIM**-0.5,
        window=None,
        softcap=None,
        sinks=None,
        processors=PROCESSORS,
        tiling=tiling,
    )


def compile_share(part: int, of: int) -> None:
    everything = [(tiling, [1, 1]) for tiling in decode_tilings()] + [(tiling, [2, 1]) for tiling in prompt_tilings()]
    for tiling, new in everything[part::of]:
        batch, cache = shapes.batch([100, 100], new), shapes.random_cache(14)
        for splits in (1, 2):
            try:
                attend(shapes.random_queries(sum(new)), cache, batch, tiling._replace(splits=splits))
            except Exception as error:  # more shared memory than there is, for one
                print(tiling, str(error).splitlines()[0])


def measure(contexts: list[int], new: list[int], tilings: list[Tiling]) -> dict[Tiling, float]:
    batch, queries = shapes.batch(contexts, new), shapes.random_queries(sum(new))
    copies = copies_of(sum(contexts) * KV_BYTES) if max(new) == 1 else 1
    caches = [shapes.random_cache(shapes.blocks_of(contexts)) for _ in range(copies)]
    chosen = choose_tiling(batch, queries, KV_HEADS, PROCESSORS)

    def time(tiling: Tiling) -> float:
        try:
            return seconds(lambda cache: attend(queries, cache, batch, tiling), caches, replays=7)
        except Exception as error:
            print(tiling, str(error).splitlines()[0])
            return float("inf")

    times = {chosen: time(chosen)}
    times |= {each: time(each) for each in (t._replace(splits=chosen.splits) for t in tilings)}
    for best in sorted(times, key=times.__getitem__)[:3]:
        for splits in SPLITS:
            times.setdefault(best._replace(splits=splits), 0.0)
    times |= {each: time(each) for each, known in times.items() if not known}
    show(f"{len(contexts)} x {contexts[0]}, new {new[0]}", times, chosen)
    return times


def show(name: str, times: dict[Tiling, float], chosen: Tiling) -> None:
    print(f"\n{name}: chosen {tuple(chosen)} {times[chosen] * 1e6:.1f} µs")
    for tiling in sorted(times, key=times.__getitem__)[:10]:
        print(f"  {times[tiling] * 1e6:8.1f}  {tuple(tiling)}", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", nargs=2, type=int, metavar=("PART", "OF"), help="only compile this share")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.compile:
        compile_share(*options.compile)
        return
    found = {}
    for sequences, context in DECODE:
        found[f"decode {sequences} x {context}"] = measure(
            [context] * sequences, [1] * sequences, list(decode_tilings())
        )
    for tokens, context in PROMPTS:
        found[f"prompt {tokens} of {context}"] = measure([context], [tokens], list(prompt_tilings()))
    OUT.mkdir(parents=True, exist_ok=True)
    content = {name: [[*tiling, time] for tiling, time in times.items()] for name, times in found.items()}
    (OUT / "tilings.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
