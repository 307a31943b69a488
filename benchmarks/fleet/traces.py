"""Traffic from files, in the two shapes in which it is published.

*Mooncake*: a line of JSON a request, `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids":
[...]}`, an id for each 512 tokens of the prompt: the same ids, the same tokens (github.com/kvcache-ai/Mooncake,
FAST25-release/traces). *ShareGPT*: one list of JSON, `{"conversations": [{"from": "human", "value": text}, {"from":
"gpt", "value": text}, ...]}`, without times: conversations come at random, and people think between turns.
"""

import json
import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.fleet.memory import BYTES
from benchmarks.fleet.requests import Request, fresh, shared

_BLOCK: Final = 512
"""Tokens of one of Mooncake's ids."""
_THINKS: Final = 15.0
"""Seconds, on average, from an answer to the next question."""


class Shape(StrEnum):
    MOONCAKE = "mooncake"
    SHAREGPT = "sharegpt"


def requests_of(path: Path, shape: Shape, rng: random.Random, per_second: float) -> Iterator[Request]:
    """In order of time. `per_second`: conversations that begin, where the file has no times.

    Raises ValueError for what is not of that shape.
    """
    try:
        return iter(list(_mooncake(path, rng) if shape is Shape.MOONCAKE else _sharegpt(path, rng, per_second)))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no trace in {shape}'s shape: {error!r}") from None


def _mooncake(path: Path, rng: random.Random) -> Iterator[Request]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    for line in sorted(lines, key=lambda line: line["timestamp"]):
        blocks = b"".join(shared(f"{path.name} {each}", _BLOCK) for each in line["hash_ids"])
        size = BYTES * line["input_length"]
        if not 0 < size <= len(blocks):
            raise ValueError(f"{path}: {line['input_length']} tokens in {len(line['hash_ids'])} blocks of {_BLOCK}")
        yield Request(line["timestamp"] / 1000, blocks[:size], fresh(rng, line["output_length"]))


def _sharegpt(path: Path, rng: random.Random, per_second: float) -> Iterator[Request]:
    at = 0.0
    for each in json.loads(path.read_text()):
        turns = _turns(each["conversations"])
        at += rng.expovariate(per_second)
        if turns:
            yield _turn(turns, b"", at, random.Random(rng.getrandbits(64)))


def _turns(said: Sequence[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    """Questions with their answers; what stands alone is left out."""
    pairs = []
    for question, answer in pairwise(said):
        if question["from"] == "human" and answer["from"] == "gpt" and question["value"] and answer["value"]:
            pairs.append((_whole(question["value"]), _whole(answer["value"])))
    return pairs


def _whole(text: str) -> bytes:
    """As many bytes as make whole tokens."""
    data = text.encode()
    return data.ljust(-(-len(data) // BYTES) * BYTES)


def _turn(left: Sequence[tuple[bytes, bytes]], history: bytes, at: float, rng: random.Random) -> Request:
    (question, answer), *later = left
    prompt = history + question

    def then(now: float) -> Request | None:
        return _turn(later, prompt + answer, now + rng.expovariate(1 / _THINKS), rng) if later else None

    return Request(at, prompt, answer, then=then)
