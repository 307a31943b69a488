"""Conversations return to the replica that holds their beginning."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest
from openai import OpenAI

from tests.system.conftest import Stack, routing

WORDS = ["river", "stone", "cloud", "amber", "forest", "quiet", "engine", "harbor", "window", "copper", "garden"]
CONVERSATIONS, TURNS = 8, 10


@dataclass(slots=True)
class Reuse:
    reusable: int = 0
    """Prompt tokens that the same conversation had sent before."""
    cached: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of each answer."""

    @property
    def share(self) -> float:
        return self.cached / self.reusable


def converse(client: OpenAI, seed: int) -> Reuse:
    """8 conversations with different system prompts of more than 1,000 tokens, 10 turns each, interleaved."""
    rng = random.Random(seed)
    conversations = [[{"role": "system", "content": " ".join(rng.choices(WORDS, k=900))}] for _ in range(CONVERSATIONS)]
    seen = [0] * CONVERSATIONS
    reuse = Reuse()
    for turn in range(TURNS):
        for number in rng.sample(range(CONVERSATIONS), CONVERSATIONS):
            messages = conversations[number]
            messages.append({"role": "user", "content": f"Question {turn}: {' '.join(rng.choices(WORDS, k=8))}?"})
            begun = time.perf_counter()
            answer = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=8, temperature=0)
            reuse.seconds.append(time.perf_counter() - begun)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
            reuse.reusable += seen[number]
            reuse.cached += answer.usage.prompt_tokens_details.cached_tokens
            seen[number] = answer.usage.prompt_tokens
    assert min(seen) > 1000
    return reuse


def test_interleaved_conversations_reuse_nearly_all_of_their_prompts(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_prefix = converse(stack.client, seed=5)
    with routing(tmp_path, stack.endpoints, "--policy", "round_robin") as router:
        in_turn = converse(Stack(router, stack.engines, stack.endpoints).client, seed=6)
    with capsys.disabled():
        print("\n| policy | reusable prompt tokens from cache | median answer |\n|---|---|---|")
        for name, reuse in (("prefix", by_prefix), ("round_robin", in_turn)):
            print(f"| {name} | {reuse.share:.1%} | {1e3 * median(reuse.seconds):.0f} ms |")
    assert by_prefix.share >= 0.9
    assert by_prefix.share > in_turn.share
