"""Constraints become grammars, on threads beside the engine's loop, and are kept for those who ask the same.

Whatever a client sends, its cost is bounded before it is paid: `headwater.openai.constraint` bounds the text, and
llguidance counts what it builds against the limits here, and gives up. Both hold no lock of Python's meanwhile.
"""

import json
import re
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag, grammar_from

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.grammar.matcher import GrammarError, Matcher, short

THREADS: Final = 2
"""One that takes seconds does not stop the others; two do, for as long. Running answers wait for none."""
_KEPT: Final = 256
"""Grammars; with the limits below, and texts of 64 KiB, most are of some KiB."""
_LIMITS: Final = LLParserLimits(
    max_grammar_size=20_000,
    initial_lexer_fuel=500_000,
    max_lexer_states=25_000,  # of 1 to 2 KB each
    verbose_errors=False,
)
_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of a JSON text. A small model that may write spaces without end does."""


class Grammar:
    """What a constraint has become. Any number of answers may be held to it."""

    def __init__(self, matcher: LLMatcher, words: int, rows: int) -> None:
        self._matcher = matcher
        self._words = words
        self._rows = rows

    def begin(self) -> Matcher:
        """For one answer, of which there is nothing yet."""
        return Matcher(self._matcher.deep_copy(), self._words, self._rows)


class Compiler:
    """Any thread may ask. `close` it at the end."""

    def __init__(self, tokenizer: str, eos_token_ids: tuple[int, ...], vocabulary: int) -> None:
        """`tokenizer`: a tokenizer.json. `vocabulary`: rows of the model, which may be more than it has tokens."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="grammar")
        self._kept: OrderedDict[Constraint, Future[Grammar]] = OrderedDict()
        self._lock = threading.Lock()
        self._rows = vocabulary
        self._tokenizer = self._threads.submit(_read_tokenizer, tokenizer, eos_token_ids, vocabulary)

    def compile(self, constraint: Constraint) -> "Future[Grammar]":
        """It raises GrammarError for what cannot be enforced."""
        with self._lock:
            if constraint not in self._kept:
                self._kept[constraint] = self._threads.submit(self._compile, constraint)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(constraint)
            return self._kept[constraint]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, constraint: Constraint) -> Grammar:
        tokenizer = self._tokenizer.result()
        try:
            grammar = grammar_of(constraint)
        except (ValueError, RecursionError) as error:
            raise GrammarError(short(str(error))) from None
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(short(matcher.get_error()))
        compiled = Grammar(matcher, words=-(-tokenizer.vocab_size // 32), rows=self._rows)
        # The first mask is the dearest one, and there is none where no text is of this form.
        compiled.begin().fill(np.zeros(0, dtype=np.int32))
        return compiled


def _read_tokenizer(tokenizer: str, eos_token_ids: tuple[int, ...], vocabulary: int) -> LLTokenizer:
    """Raises GrammarError."""
    if not eos_token_ids:
        raise GrammarError("the model names no token that ends an answer")
    tokens = json.loads(tokenizer)
    most = max((each["id"] for each in tokens.get("added_tokens", [])), default=0) + 1
    size = max(vocabulary, most, len(tokens["model"].get("vocab", ())))
    try:
        return LLTokenizer(tokenizer, n_vocab=size, eos_token=list(eos_token_ids))
    except Exception as error:  # has no narrower class
        raise GrammarError(f"the model's tokenizer is of a kind that structured output cannot use: {error}") from None


def grammar_of(constraint: Constraint) -> str:
    """As llguidance takes it. Raises ValueError."""
    grammar = _form(constraint)
    if not constraint.lead:
        return grammar
    form = json.loads(grammar)["grammars"][0] if grammar.startswith("{") else {"lark_grammar": grammar}
    return json.dumps({"grammars": [{"lark_grammar": constraint.lead}, {**form, "name": "form"}]})


def _form(constraint: Constraint) -> str:
    match constraint.kind:
        case Kind.JSON_SCHEMA:
            options: dict[str, Any] = {"whitespace_pattern": _SPACE, "lenient": constraint.lenient}
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=options)  # type: ignore[arg-type]
        case Kind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case Kind.CHOICE:
            # One expression: as rules of a grammar, thousands would be looked at for each token.
            return LLMatcher.grammar_from_regex("|".join(map(re.escape, json.loads(constraint.text))))
        case Kind.GRAMMAR:
            return grammar_from("grammar", constraint.text)
        case Kind.STRUCTURAL_TAG:
            return StructTag.to_grammar(list(_tags(json.loads(constraint.text))), assume_special=False)


def _tags(value: dict[str, Any]) -> list[StructTag]:
    """vLLM's and SGLang's structures. Raises ValueError."""
    tags, triggers = [], value["triggers"]
    if not isinstance(value["structures"], list) or not isinstance(triggers, list) or not value["structures"]:
        raise ValueError("`structures` and `triggers` must be lists, the first not empty")
    for each in value["structures"]:
        match each:
            case {"begin": str(begin), "schema": dict() | bool() as schema, "end": str(end)}:
                pass
            case _:
                raise ValueError("each of `structures` must have `begin`, `schema` and `end`")
        trigger = next((text for text in triggers if isinstance(text, str) and text and begin.startswith(text)), None)
        if trigger is None:
            raise ValueError(f"no trigger is the beginning of {begin!r}")
        tags.append(StructTag(trigger=trigger, begin=begin, grammar=json.dumps(schema), end=end))
    return tags
