"""From a request's body to what the picker needs: its hash chain and how many tokens it has.

The chain of the text is always there, and is all that most endpoints need. Token ids are known where the prompt is
token ids, or where the model's tokenizer was given; then prompts are also matched against the engines' KV events.
Otherwise the number of tokens is estimated from the bytes of the text, at a rate that is learned from the usage in
the answers.

The text stays JSON. Only where token ids are wanted is any of it read into Python objects, and no more than
`MAX_EXACT_BYTES`. A prompt holds nothing of the body, which can go while the answer is on its way.
"""

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from headwater.prefix import (
    BLOCK_BYTES,
    MAX_TOKENS,
    fold_attachments,
    root_hash,
    text_chain,
)
from headwater_router.gateway.body import Body
from headwater_router.index.chains import KnownChains
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.stored import token_root
from headwater_router.index.tokenizers import Tokenizer, Tokenizers
from headwater_router.picker.base import Prompt

DEFAULT_BYTES_PER_TOKEN: Final = 4.0
MAX_EXACT_BYTES: Final = 8 * MAX_TOKENS
"""Of JSON that is decoded where token ids are wanted: a token id takes up to seven, a token of text about four."""
ATTACHMENT_TOKENS: Final = 1000
"""What an image costs with most models, within a factor of three."""
_MAX_BRACKETS: Final = 1 << 16
"""In that JSON: a program text of a MiB has half as many, and lists cost twenty times their bytes."""
_LEARNING: Final = 0.05

_SHAPING: Final = (
    "tools",
    "functions",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_special_tokens",
    "instructions",
    "system",
    "previous_response_id",
    "cache_salt",
    "extra_key",
)
"""Fields of a body that change a prompt from its beginning on. What only changes its end is not among them."""

_RENDERED: Final = (
    "messages",
    "prompt",
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "add_special_tokens",
    "add_generation_prompt",
    "continue_final_message",
)
"""Fields that a tokenizer is given."""

_shaping: Final = attrgetter(*_SHAPING)
_opening: Final = re.compile(rb"[\[\s]+").match
_ids: Final = msgspec.json.Decoder(list[int]).decode
_id_lists: Final = msgspec.json.Decoder(list[list[int]]).decode
_salt: Final = msgspec.json.Decoder(str | None).decode
_NULL: Final = Raw(b"null")
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)

Headers = Iterable[tuple[bytes, bytes]]
"""As in an ASGI scope: names in lower case."""


class _Text(NamedTuple):
    """What a body asks to be read, as JSON."""

    kind: str
    """Texts of different kinds never share a chain."""
    stream: bytes = b""
    """Without its end: a prompt that goes on has this one as its beginning."""
    beside: int = 0
    """Bytes that are part of the prompt, and not of the stream."""


class PromptBuilder:
    """Builds prompts; holds what was learned of each model's text."""

    def __init__(self, *, session_header: str = "x-session-id", tokenizers: Tokenizers | None = None) -> None:
        self._session_header = session_header.lower().encode()
        self.tokenizers = tokenizers or Tokenizers()
        self._chains = KnownChains()
        self._bytes_per_token: dict[str, float] = {}
        """By names of models that are served, not by what clients call them."""

    def build(self, path: str, body: Body, headers: Headers, *, model: str, adapter: str = "") -> Prompt:
        """The prompt of a request. A body that makes no sense gives an empty chain: the engine will refuse it in words.

        `model`: the model's own name, where the body may have an alias. `adapter`: the LoRA adapter, if it names one.
        """
        text = _text_of(path, body)
        stream, attachments = fold_attachments(text.stream)
        usual = rate = self._bytes_per_token.get(model, DEFAULT_BYTES_PER_TOKEN)
        if text.kind == "tokens":
            rate = len(stream) / (stream.count(b",") + 1)
        read = (len(stream) - attachments * BLOCK_BYTES) / rate + attachments * ATTACHMENT_TOKENS
        prompt = Prompt(
            model,
            text_chain(_root_of(body, model, adapter, text.kind), stream) if len(stream) >= BLOCK_BYTES else [],
            max(1, round(read + text.beside / rate)),
            text_block_tokens=BLOCK_BYTES * (read / len(stream) if read else 1 / rate),
            usual_block_tokens=BLOCK_BYTES / usual,
            text_bytes=0 if attachments or text.kind == "tokens" else len(stream) + text.beside,
            streamed=body.stream,
            adapter=adapter,
            session=self._session(headers),
        )
        if (
            text.kind == "tokens"
            and (tokens := _tokens(_given_ids(body.prompt), body, adapter, self._chains)) is not None
        ):
            tokens.put_into(prompt)
        return prompt

    def exact(
        self, prompt: Prompt, path: str, body: Body, *, adapter: str = ""
    ) -> "Coroutine[None, None, None] | None":
        """What is to be awaited to know the prompt's token ids, too; None where there is nothing to wait for."""
        tokenizer = self.tokenizers.of(prompt.model)
        if tokenizer is None or (kind := _text_of(path, body).kind) not in ("chat", "text"):
            return None
        fields = {name: raw for name in _RENDERED if (raw := getattr(body, name))}
        size = sum(map(len, fields.values()))
        if size > MAX_EXACT_BYTES or sum(map(_brackets, fields.values())) > _MAX_BRACKETS:
            return None
        return self._count(prompt, partial(_rendered, tokenizer, kind, fields, body, adapter, self._chains), size)

    async def _count(self, prompt: Prompt, render: "Callable[[], _Tokens | None]", size: int) -> None:
        if self.tokenizers.has_room(size) and (tokens := await self.tokenizers.run(size, render)) is not None:
            tokens.put_into(prompt)
            prompt.rendered = True

    def learn(self, prompt: Prompt, prompt_tokens: int) -> None:
        """An answer's usage said how many tokens the prompt has."""
        if prompt.rendered:
            self.tokenizers.counted(prompt.model, prompt.tokens, prompt_tokens)
        if prompt.token_chain is None and prompt.text_bytes >= BLOCK_BYTES and prompt_tokens > 0:
            seen = prompt.text_bytes / prompt_tokens
            known = self._bytes_per_token.get(prompt.model, DEFAULT_BYTES_PER_TOKEN)
            # A byte is a token at most; far above is no text but what the engine did not read.
            self._bytes_per_token[prompt.model] = known + _LEARNING * (min(max(seen, 1.0), 16.0) - known)

    def _session(self, headers: Headers) -> str | None:
        for name, value in headers:
            if name == self._session_header:
                return value.decode("latin-1")
        return None


def _text_of(path: str, body: Body) -> _Text:
    match path.rpartition("/")[2]:
        case "completions" if path.endswith("/chat/completions"):
            return _Text("chat", _open_ended(body.messages), len(body.tools) + len(body.functions))
        case "completions":
            opening = _opening(body.prompt)  # One prompt in a list is that prompt.
            stream = _open_ended(body.prompt, opening.end() if opening else 0)
            return _Text("text" if stream.startswith(b'"') else "tokens" if stream else "", stream)
        case "responses":
            return _Text("responses", _open_ended(body.input), len(body.tools) + len(body.instructions))
        case "messages":
            return _Text("messages", _open_ended(body.messages), len(body.tools) + len(body.system))
        case _:
            return _Text("")


def _open_ended(raw: Raw, start: int = 0) -> bytes:
    """A list or a string from `start` on, without its last byte; nothing of anything else."""
    text = memoryview(raw)
    return bytes(text[start:-1]) if bytes(text[:1]) in (b"[", b'"') else b""


def _root_of(body: Body, model: str, adapter: str, kind: str) -> int:
    values = _shaping(body)
    shape = {}
    if any(values):
        shape = {name: raw for name, raw in zip(_SHAPING, values, strict=True) if raw and raw != _NULL}
    return root_hash(model, adapter=adapter, shape=shape, kind=kind)


def _rendered(
    tokenizer: Tokenizer, kind: str, fields: Mapping[str, Raw], body: Body, adapter: str, chains: KnownChains
) -> "_Tokens | None":
    """What the engine makes of these fields of the body; None where that cannot be told. For any thread."""
    try:
        values = {name: msgspec.json.decode(raw) for name, raw in fields.items()}
    except _UNREADABLE:
        return None
    ids = tokenizer.chat(values) if kind == "chat" else tokenizer.completion(values)
    return _tokens(ids, body, adapter, chains)


def _brackets(raw: Raw) -> int:
    """No fewer than it has lists and objects."""
    text = bytes(raw)
    return text.count(b"[") + text.count(b"{")


def _given_ids(raw: Raw) -> list[int] | None:
    """The ids of a prompt that is one list of them, and no longer than prompts are."""
    if len(raw) > MAX_EXACT_BYTES:
        return None
    lists = _brackets(raw)
    try:
        return _ids(raw) if lists == 1 else _id_lists(raw)[0] if lists == 2 else None
    except (*_UNREADABLE, IndexError):
        return None


class _Tokens(NamedTuple):
    """Of a prompt whose ids are known, so that there is nothing to estimate."""

    number: int
    chain: list[int]

    def put_into(self, prompt: Prompt) -> None:
        prompt.tokens, prompt.token_chain, prompt.token_block_size = self.number, self.chain, KEY_TOKENS


def _tokens(ids: "Sequence[int] | None", body: Body, adapter: str, chains: KnownChains) -> _Tokens | None:
    """None where there are none, or none that KV events could tell of."""
    if not ids or len(body.cache_salt) > MAX_EXACT_BYTES:
        return None
    if body.extra_key and body.extra_key != _NULL:
        return None  # SGLang keeps such prompts apart from others, but its KV events do not say which they are.
    try:
        salt = _salt(body.cache_salt) if body.cache_salt else None
        return _Tokens(len(ids), chains.of(token_root(adapter=adapter, salt=salt or ""), ids[:MAX_TOKENS]))
    except _UNREADABLE:
        return None  # Not token ids after all, or no salt.
