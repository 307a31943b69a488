"""Conversations return to the replica that holds their beginning."""

import random

WORDS = ["river", "stone", "cloud", "amber", "forest", "quiet", "engine", "harbor", "window", "copper", "garden"]
CONVERSATIONS, TURNS = 8, 10


def test_interleaved_conversations_reuse_nearly_all_of_their_prompts(stack) -> None:
    """Two replicas, 8 conversations with different system prompts of about 1,000 tokens, 10 turns each, interleaved."""
    rng = random.Random(5)
    conversations = [[{"role": "system", "content": " ".join(rng.choices(WORDS, k=900))}] for _ in range(CONVERSATIONS)]
    seen = [0] * CONVERSATIONS
    reusable = cached = 0
    for turn in range(TURNS):
        for number in rng.sample(range(CONVERSATIONS), CONVERSATIONS):
            messages = conversations[number]
            messages.append({"role": "user", "content": f"Question {turn}: {' '.join(rng.choices(WORDS, k=8))}?"})
            answer = stack.client.chat.completions.create(
                model="smollm2", messages=messages, max_tokens=8, temperature=0
            )
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
            reusable += seen[number]
            cached += answer.usage.prompt_tokens_details.cached_tokens
            seen[number] = answer.usage.prompt_tokens
    assert min(seen) > 1000
    assert cached >= 0.9 * reusable
