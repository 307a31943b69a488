"""What the HTTP front knows of the model: its names, its tokenizer and chat template, its sampling defaults."""

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from tokenizers import Encoding

from headwater.openai.chat import Conversation
from headwater.openai.errors import BadRequestError, ModelNotFoundError
from headwater.openai.models import ModelCard
from headwater.openai.request import SamplingDefaults, SamplingRequest
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError
from headwater_engine.formats.call_format import CallFormat
from headwater_engine.formats.functions import Spelling
from headwater_engine.formats.reader import Speech
from headwater_engine.formats.registry import CALL_FORMAT_OF, THINKING_OF, format_that_reads, thinking_in
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.pooling import plan_pooling
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.encoding import PromptEncoder
from headwater_engine.server.messages import PROBED
from headwater_engine.server.rendering import Renderer

log = structlog.get_logger(__name__)


class ServedModel:
    """Everything that does not need the weights. Blocking; built and used in a thread where texts are long."""

    def __init__(self, settings: EngineSettings) -> None:
        """Downloads the model where its source says so. Raises LoadError."""
        folder = resolve(settings.model, settings.revision)
        self.names = settings.served_model_name or list(folder.names)
        self.source = settings.model
        self.created = int(time.time())
        self.tokenizer = load_tokenizer(folder)
        self.plan = plan_pooling(folder, settings.runner, settings.pooling)
        """Of a model that makes vectors or scores; None: it generates text."""
        self.vocabulary = len(self.tokenizer)
        """Token ids are below. Once the weights are loaded, the model's own rows count."""
        self.backend = self.tokenizer.backend_tokenizer
        # Some were saved with what they were trained with, and would cut a prompt in silence.
        self.backend.no_truncation()
        self.backend.no_padding()
        if settings.chat_template is not None:
            self.tokenizer.chat_template = _read_template(settings.chat_template)
        config = load_generation_config(folder)
        self.eos_token_ids = _token_ids(config.get("eos_token_id"), self.tokenizer.eos_token_id)
        self.defaults = _sampling_defaults(config if settings.generation_config == "auto" else {}, settings)
        self._longest_token = max(map(len, self.backend.get_vocab()))
        self._warned_of_bos = False
        self._cuts_max_tokens = settings.excess_max_tokens == "cut"
        hide = settings.special_tokens_in_messages == "text"
        self._renderer = self._make_renderer(hide_special_tokens=hide) if self.plan is None else None
        self.speech = self._learn_speech(settings)
        added = {token.content: number for number, token in self.backend.get_added_tokens_decoder().items()}
        self.spelling = Spelling(added.get, self.speech.markers)
        self.markers = {added[text]: text for text in self.speech.markers if text in added}
        """Tokens that are shown to what reads answers, though they may be special."""
        self._encode = PromptEncoder(self.backend, self._renderer.control_tokens if self._renderer else [])

    def check_name(self, name: str | None) -> None:
        """Raises ModelNotFoundError."""
        if name is not None and name not in self.names:
            raise ModelNotFoundError(name, self.names)

    def card(self, name: str, context: int) -> ModelCard:
        """`context`: tokens of one request."""
        return ModelCard(id=name, created=self.created, root=self.source, max_model_len=context)

    def tokenizer_info(self) -> dict[str, Any]:
        """As vLLM says it, for tools that make prompts themselves."""
        return {
            "tokenizer_class": type(self.tokenizer).__name__,
            **{str(name): str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "chat_template": self.tokenizer.chat_template,
        }

    def close(self) -> None:
        """End what renders the chat template."""
        if self._renderer is not None:
            self._renderer.close()

    def check_length(self, text: str, context: int, field: str) -> None:
        """Raises BadRequestError for a text that no `context` tokens can hold, and that need not be tokenized."""
        longest = self.longest_text(context)
        if len(text) > longest:
            raise BadRequestError(
                f"The prompt is too long: it has {len(text)} characters. This model's maximum context length is "
                f"{context} tokens, which are at most {longest} characters.",
                param=field,
                code="context_length_exceeded",
            )

    def longest_text(self, context: int) -> int:
        """Characters of so many tokens at most."""
        return context * self._longest_token

    def told_apart(self, encoding: Encoding) -> list[int]:
        """Tokens of one text or of two, which an encoder tells apart by their numbers."""
        if self.plan is None or not self.plan.second_text:
            return list(encoding.ids)
        return [
            token + kind * self.plan.second_text for token, kind in zip(encoding.ids, encoding.type_ids, strict=True)
        ]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """`text` is a client's, or what `render` gave. Raises BadRequestError."""
        tokens = self._encode(text, add_special_tokens=add_special_tokens)
        bos = self.tokenizer.bos_token_id
        if bos is not None and tokens[:2] == [bos, bos] and not self._warned_of_bos:
            self._warned_of_bos = True
            log.warning(
                "a prompt begins with the model's first token twice: the text has it, and the tokenizer adds it, too; "
                "add_special_tokens false would leave it to the text",
                token=self.tokenizer.bos_token,
            )
        return tokens

    async def render(self, request: Conversation) -> str:
        """The conversation as the text of a prompt, for `encode` alone: special tokens in its messages are broken.

        Raises BadRequestError, also for what the template refuses, or ServiceUnavailableError.
        """
        if self._renderer is None:
            raise BadRequestError(
                "The model has no chat template: use /v1/completions, or start the engine with --chat-template."
            )
        return await self._renderer.render(
            {
                "messages": [message.model_dump(exclude_unset=True) for message in request.messages],
                "tools": request.tools,
                "add_generation_prompt": request.add_generation_prompt,
                "continue_final_message": request.continue_final_message,
                "variables": request.template_variables,
            }
        )

    def sampling_params(
        self,
        request: SamplingRequest,
        *,
        max_tokens: int,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """The request's own values, the model's where it has none, the API's where that has none."""
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min(request.min_tokens, max_tokens),
            temperature=self._value(request, "temperature", 1.0),
            top_p=self._value(request, "top_p", 1.0),
            top_k=max(0, int(self._value(request, "top_k", 0))),
            min_p=self._value(request, "min_p", 0.0),
            seed=request.seed if request.seed is not None else secrets.randbits(63),
            presence_penalty=self._value(request, "presence_penalty", 0.0),
            frequency_penalty=self._value(request, "frequency_penalty", 0.0),
            repetition_penalty=self._value(request, "repetition_penalty", 1.0),
            logit_bias=self._known_tokens(request.logit_bias, "logit_bias"),
            allowed_token_ids=self._allowed_tokens(request),
            stop=tuple(request.stop),
            include_stop_str_in_output=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            stop_token_ids=tuple(request.stop_token_ids),
            eos_token_ids=self.eos_token_ids,
            ignore_eos=request.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def usual_tokens(self, request: SamplingRequest, api_default: int | None) -> int | None:
        """Output tokens of a request that does not say how many it wants. None: what the context leaves."""
        usual = self.defaults.max_new_tokens or api_default
        return None if usual is None else max(usual, request.min_tokens)

    def check_tokens(self, tokens: Sequence[int], field: str) -> None:
        """Raises BadRequestError for a token id that the model does not have."""
        if (unknown := max(tokens, default=0)) >= self.vocabulary:
            raise BadRequestError(
                f"`{field}` holds the token id {unknown}; the model's are 0 to {self.vocabulary - 1}.", param=field
            )

    def wanted_tokens(self, wanted: int | None, context: int, prompt: Sequence[int]) -> int | None:
        """Output tokens that a request wants: with --excess-max-tokens cut, at most what the context leaves."""
        if wanted is None or not self._cuts_max_tokens:
            return wanted
        return max(1, min(wanted, context - len(prompt)))

    def _learn_speech(self, settings: EngineSettings) -> Speech:
        """How the model writes calls and reasoning: as the flags say, or as its chat template does."""
        calls: CallFormat | None = CALL_FORMAT_OF.get(settings.tool_call_parser)
        thinking = THINKING_OF.get(settings.reasoning_parser)
        if settings.tool_call_parser == "auto" and self._renderer is not None:
            calls = format_that_reads(self._renderer.calls_as, *PROBED)
            if calls is None and not (self._renderer.calls_as or self._renderer.shows_tools):
                calls = CALL_FORMAT_OF["hermes"]  # that of `tools_in_words.py`
        if settings.reasoning_parser == "auto" and self.tokenizer.chat_template is not None:
            thinking = thinking_in(str(self.tokenizer.chat_template))
        if settings.reasoning_parser in CALL_FORMAT_OF:
            calls = CALL_FORMAT_OF[settings.reasoning_parser]
        return Speech(calls, thinking)

    def _make_renderer(self, *, hide_special_tokens: bool) -> Renderer | None:
        """None where the model has no chat template. Raises LoadError."""
        if self.tokenizer.chat_template is None:
            return None
        try:
            plain = self.tokenizer.get_chat_template()
            with_tools = self.tokenizer.get_chat_template(tools=[{}])
        except ValueError as error:
            raise LoadError(f"The model's chat templates cannot be used: {error}") from error
        added = self.backend.get_added_tokens_decoder().values()
        return Renderer(
            {
                "plain": plain,
                "with_tools": with_tools,
                "variables": dict(self.tokenizer.special_tokens_map),
                "added_tokens": [(token.content, token.special) for token in added],
                "hide_special_tokens": hide_special_tokens,
            }
        )

    def _known_tokens(self, biases: Mapping[int, float], field: str) -> dict[int, float]:
        self.check_tokens(list(biases), field)
        return dict(biases)

    def _allowed_tokens(self, request: SamplingRequest) -> tuple[int, ...] | None:
        if request.allowed_token_ids is None:
            return None
        self.check_tokens(request.allowed_token_ids, "allowed_token_ids")
        ends = {*request.stop_token_ids, *(() if request.ignore_eos else self.eos_token_ids)}
        if request.min_tokens and ends.issuperset(request.allowed_token_ids):
            raise BadRequestError(
                "`allowed_token_ids` are all ends of the answer, which `min_tokens` does not let come first.",
                param="allowed_token_ids",
            )
        return tuple(request.allowed_token_ids)

    def _value(self, request: SamplingRequest, name: str, api_default: float) -> float:
        for given in (getattr(request, name), getattr(self.defaults, name)):
            if given is not None:
                return float(given)
        return api_default


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise LoadError(f"The chat template {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LoadError(f"The chat template {path} is not UTF-8: {error.reason}.") from error


def _sampling_defaults(config: Mapping[str, Any], settings: EngineSettings) -> SamplingDefaults:
    """`config`: the fields of generation_config.json. Raises LoadError."""
    theirs = {name: value for name, value in config.items() if name in SamplingDefaults.model_fields}
    given = settings.override_generation_config
    ours = {} if given is None else given.model_dump(exclude_none=True)
    try:
        return SamplingDefaults.read(theirs | ours)
    except ValueError as error:
        raise LoadError(
            f"The model's generation_config.json cannot be used: {error}. --generation-config none does without it, "
            "--override-generation-config gives other values."
        ) from None


def _token_ids(*sources: int | Sequence[int] | None) -> tuple[int, ...]:
    ids: dict[int, None] = {}
    for source in sources:
        for token in [source] if isinstance(source, int) else source or ():
            ids[token] = None
    return tuple(ids)
