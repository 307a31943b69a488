"""What shifts single logits before a token is chosen: penalties, biases, and tokens that must not come yet."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater_engine.sampling.params import SamplingParams


def shifts_logits(params: SamplingParams, outputs: int) -> bool:
    """Whether `shift_logits` would do anything, `outputs` tokens into the answer."""
    return bool(
        params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.logit_bias
        or outputs < params.min_tokens
    )


def shift_logits(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> None:
    """Change logits [V] in place.

    The repetition penalty (Keskar et al., "CTRL") divides positive and multiplies negative logits of all tokens seen so
    far; OpenAI's presence and frequency penalties are subtracted from those of tokens in the answer, once and for each
    time they stand there.
    """
    if params.repetition_penalty != 1.0:
        seen = logits.new_tensor(sorted({*prompt, *output}), dtype=torch.long)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and output:
        counts = Counter(output)
        tokens = logits.new_tensor(list(counts), dtype=torch.long)
        times = logits.new_tensor(list(counts.values()))
        logits[tokens] -= params.presence_penalty + params.frequency_penalty * times
    if params.logit_bias:
        tokens = logits.new_tensor(list(params.logit_bias), dtype=torch.long)
        logits[tokens] += logits.new_tensor(list(params.logit_bias.values()))
    if len(output) < params.min_tokens:
        ends = [token for token in (*params.eos_token_ids, *params.stop_token_ids) if token < len(logits)]
        logits[logits.new_tensor(ends, dtype=torch.long)] = float("-inf")
