"""How one request's tokens are chosen and when it ends. Validated by the HTTP front; trusted from there on."""

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything the sampler and the scheduler need to know of a request, with the model's own defaults merged in."""

    max_tokens: int
    """Output tokens at most, at least 1."""
    min_tokens: int = 0
    """End and stop tokens are not sampled, and stop strings are not looked for, before so many output tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    seed: int = 0
    """Always set: the front draws one where the caller gave none."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """1: off. Counts prompt and output tokens, as Hugging Face's and vLLM's do; the other two only output tokens."""
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    """None: all."""
    stop: tuple[str, ...] = ()
    """Strings; the HTTP front, which owns the text, looks for them."""
    include_stop_str_in_output: bool = False
    """The answer's text holds what ended it; the HTTP front's, too."""
    skip_special_tokens: bool = True
    """The answer's text leaves them out; the HTTP front's, too."""
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    """The model's own; unheeded under `ignore_eos`."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: none. k: of the sampled token and of the k likeliest."""
    prompt_logprobs: int | None = None
    """The same for each prompt token but the first; used by `echo` with logprobs."""
