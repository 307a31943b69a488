"""From a request's body to what the picker needs: its hash chain and how many tokens it has.

The chain of the text is always there, and is all that most endpoints need. Token ids are known where the prompt is
token ids, or where the model's tokenizer was given; then prompts are also matched against the engines' KV events.
Otherwise the number of tokens is estimated from the bytes of the text, at a rate that is learned from the usage in
the answers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from headwater.prefix import BLOCK_BYTES, chat_chain, completion_chain, responses_chain, token_chain
from headwater_router.index.stored import KEY_TOKENS, token_root
from headwater_router.picker.base import Prompt

DEFAULT_BYTES_PER_TOKEN: Final = 4.0
_MESSAGE_BYTES: Final = 16
"""What a chat template adds to a message: four tokens or so."""
_LEARNING: Final = 0.05

Headers = Iterable[tuple[bytes, bytes]]
"""As in an ASGI scope: names in lower case."""

_json: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


class Tokenizer(Protocol):
    """What `headwater_router.index.tokenizer` gives; None where it cannot say, as for images."""

    def chat(self, body: Mapping[str, Any]) -> list[int] | None: ...

    def completion(self, body: Mapping[str, Any]) -> list[int] | None: ...


class PromptBuilder:
    """Builds prompts; holds what was learned of each model's text."""

    def __init__(
        self, *, session_header: str = "x-session-id", tokenizers: Mapping[str, Tokenizer] | None = None
    ) -> None:
        """`tokenizers`: by the model's name."""
        self._session_header = session_header.lower().encode()
        self._tokenizers = dict(tokenizers or {})
        self._bytes_per_token: dict[str, float] = {}

    def build(
        self, path: str, body: Mapping[str, Any], headers: Headers, *, model: str | None = None, adapter: str = ""
    ) -> Prompt:
        """The prompt of a request. A body that makes no sense gives an empty chain: the engine will refuse it in words.

        `model`: the model's own name, where the body may have an alias. `adapter`: the LoRA adapter, if it names one.
        """
        name = model if model is not None else str(body.get("model", ""))
        ids: list[int] | None = None
        tokenizer = self._tokenizers.get(name)
        match path.rpartition("/")[2]:
            case "completions" if path.endswith("/chat/completions"):
                chain = chat_chain(body, model=name, adapter=adapter)
                size = _items_bytes(body.get("messages")) + _tools_bytes(body)
                ids = tokenizer.chat(body) if tokenizer else None
            case "completions":
                chain = completion_chain(body, model=name, adapter=adapter)
                size = _text_bytes(body.get("prompt"))
                ids = _given_ids(body.get("prompt")) or (tokenizer.completion(body) if tokenizer else None)
            case "responses":
                chain = responses_chain(body, model=name, adapter=adapter)
                size = _items_bytes(body.get("input")) + _text_bytes(body.get("instructions")) + _tools_bytes(body)
            case _:
                chain, size = [], 0
        bytes_per_token = self._bytes_per_token.get(name, DEFAULT_BYTES_PER_TOKEN)
        prompt = Prompt(
            name,
            chain,
            max(1, round(size / bytes_per_token)),
            text_block_tokens=BLOCK_BYTES / bytes_per_token,
            streamed=body.get("stream") is True,
            session=self._session(headers),
        )
        if ids:
            self._count_tokens(prompt, ids, body, adapter)
        return prompt

    def learn(self, prompt: Prompt, prompt_tokens: int) -> None:
        """An answer's usage said how many tokens the prompt has."""
        if prompt.token_chain is None and prompt.text_chain and prompt_tokens > 0:
            seen = (BLOCK_BYTES / prompt.text_block_tokens) * prompt.tokens / prompt_tokens
            known = self._bytes_per_token.get(prompt.model, DEFAULT_BYTES_PER_TOKEN)
            # A byte is a token at most; far above is no text but what the chain did not see, such as images.
            self._bytes_per_token[prompt.model] = known + _LEARNING * (min(max(seen, 1.0), 16.0) - known)

    def _session(self, headers: Headers) -> str | None:
        for name, value in headers:
            if name == self._session_header:
                return value.decode("latin-1")
        return None

    def _count_tokens(self, prompt: Prompt, ids: list[int], body: Mapping[str, Any], adapter: str) -> None:
        salt = body.get("cache_salt")
        root = token_root(adapter=adapter, salt=salt if isinstance(salt, str) else "")
        try:
            prompt.token_chain = token_chain(root, ids, KEY_TOKENS)
        except ValueError:
            return  # Not token ids after all.
        prompt.token_block_size = KEY_TOKENS
        prompt.tokens = len(ids)
        if prompt.text_chain and isinstance(body.get("prompt"), list):
            prompt.text_block_tokens = BLOCK_BYTES / 4  # A token id takes 4 bytes of the chain.


def _given_ids(prompt: Any) -> list[int] | None:
    """The ids of a prompt that is one list of them."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(each) is int for each in prompt):
        return prompt
    return None


def _items_bytes(items: Any) -> int:
    """Bytes of a list of messages or other input items."""
    if not isinstance(items, list):
        return _text_bytes(items)
    total = 0
    for item in items:
        total += _MESSAGE_BYTES
        if isinstance(item, dict):
            content = item.get("content")
            total += len(content) if isinstance(content, str) and content.isascii() else _text_bytes(content)
            if calls := item.get("tool_calls"):
                total += len(_json(calls))
    return total


def _tools_bytes(body: Mapping[str, Any]) -> int:
    tools = body.get("tools")
    return len(_json(tools)) if tools else 0


def _text_bytes(value: Any) -> int:
    match value:
        case str():
            return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
        case {"text": str() as text}:
            return _text_bytes(text)
        case [int(), *_]:
            return 4 * len(value)  # Token ids, at the default of 4 bytes each.
        case list():
            return sum(map(_text_bytes, value))
        case _:
            return 0
