"""What an HTTP request asks of the engine: what chat and text completions have in common."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from headwater.openai.constraint import Constraint
from headwater.openai.errors import BadRequestError
from headwater.openai.request import SamplingRequest
from headwater_engine.core.messages import Generate
from headwater_engine.formats.reader import Reader
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.echo import Echo

Speaking = Callable[[], Reader]
"""Makes the reader of one answer."""


@dataclass(slots=True)
class Question:
    """All that one HTTP request asks of the engine."""

    id: str
    prompts: list[list[int]]
    """Token ids."""
    params: SamplingParams
    n: int
    model: str = ""
    """The name that the answer gives."""
    echo_only: bool = False
    """Nobody sees the one token of the answer."""
    priority: int = 0
    cache_salt: str = ""
    constraint: Constraint | None = None
    form_field: str | None = None
    """Of the request, which asks for what the constraint is made of."""
    read: Speaking | None = None
    """How each answer is read; None: it is nothing but content."""
    echoes: Sequence[Echo] = ()
    """Of the prompts, where the answers begin with them."""

    def messages(self) -> Iterator[Generate]:
        """One for each prompt and each of its `n` answers, in the order of the choices."""
        for number, prompt in enumerate(self.prompts):
            for answer in range(self.n):
                params = self.params
                if answer:
                    params = msgspec.structs.replace(params, seed=params.seed + answer)
                yield Generate(
                    id=f"{self.id}-{number * self.n + answer}",
                    prompt=prompt,
                    params=params,
                    priority=self.priority,
                    cache_salt=self.cache_salt,
                    constraint=self.constraint,
                )


def truncated(prompt: list[int], request: SamplingRequest, context: int, wanted: int | None) -> list[int]:
    """The prompt as `truncate_prompt_tokens` cuts it. `wanted`: output tokens; as of `max_tokens`."""
    most = request.truncate_prompt_tokens
    if most is None:
        return prompt
    if most == -1:
        most = max(1, context - (wanted or 1))
    return prompt[:most] if request.truncation_side == "right" else prompt[-most:]


def max_tokens(
    context: int, prompt: Sequence[int], wanted: int | None, usual: int | None, field_name: str, prompt_field: str
) -> int:
    """Output tokens that a request may have: what it wants, or else what is usual, at most what the context leaves.

    `context`: prompt and output tokens together, at most. `usual` None: as many as that leaves. Raises BadRequestError
    where the prompt alone, or together with what is wanted, can never fit.
    """
    room = context - len(prompt)
    if room < 1:
        raise BadRequestError(
            f"The prompt is too long: it has {len(prompt)} tokens. This model's maximum context length is {context} "
            "tokens, at least one of them for the answer.",
            param=prompt_field,
            code="context_length_exceeded",
        )
    if wanted is not None and wanted > room:
        raise BadRequestError(
            f"The prompt is too long for `{field_name}` {wanted}: it has {len(prompt)} tokens. This model's maximum "
            f"context length is {context} tokens: at most {room} are left for the answer.",
            param=field_name,
            code="context_length_exceeded",
        )
    if wanted is None:
        return room if usual is None else min(usual, room)
    return wanted


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())
