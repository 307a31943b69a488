"""Constraints become grammars, on threads beside the engine's loop, and are kept for those who ask the same.

The threads stand back where the kernels use all CPUs: with two of them, a wide form made everybody's steps 1.7 times as
long. Whatever a client sends, its cost is bounded before it is paid: `headwater.openai.constraint` bounds the text, and
llguidance counts what it builds against the limits here, and gives up; what was measured takes less than a second. A
short text goes before long ones that came earlier, and none is begun that nobody waits for any more.
"""

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Final, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag, grammar_from

from headwater.openai.constraint import MOST_BYTES, Constraint, Kind
from headwater_engine.grammar.matcher import Cost, GrammarError, Matcher, short
from headwater_engine.grammar.priority import PATIENT, stand_back
from headwater_engine.grammar.schemas import check_schema
from headwater_engine.grammar.special_tokens import hide_special, with_ids

THREADS: Final = 2
_PATIENCE: Final = 2.0
"""Seconds within which shorter texts go before the longest; the others wait by their length."""
_KEPT_BYTES: Final = 256 << 20
"""Of grammars, by `Grammar.size`, whether anybody uses them or not, before another one is made."""
_BASE, _BYTES_A_CHARACTER, _MOST_BYTES_OF_STATES, _BYTES_A_SECOND = 256 << 10, 600, 50 << 20, 120 << 20
_BYTES_A_REFUSAL: Final = 4096
"""What grammars take, as far as it was measured: by their text, and by the time of masks that built states."""
_LONG: Final = 4096
"""Characters of a text, of which one mask may take more than all of them are to have of the loop."""
_LIMITS: Final = LLParserLimits(
    max_grammar_size=20_000,
    # Beyond what the other limits leave, so that whether an answer comes to its end is not a matter of what is drawn.
    max_items_in_row=20_000,
    initial_lexer_fuel=500_000,
    max_lexer_states=25_000,  # of 1 to 2 KB each
    verbose_errors=False,
)
T = TypeVar("T")
_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of a JSON text. A small model that may write spaces without end does."""


class Grammar:
    """What a constraint has become. Any number of answers may be held to it."""

    def __init__(self, matcher: LLMatcher, words: int, rows: int, length: int) -> None:
        """`length`: characters of the constraint's text."""
        self.cost = Cost(long=length > _LONG)
        self._matcher = matcher
        self._words = words
        self._rows = rows
        self._length = length

    @property
    def size(self) -> int:
        """Bytes that it takes, estimated: nobody counts them."""
        states = min(_MOST_BYTES_OF_STATES, int(self.cost.grown * _BYTES_A_SECOND))
        return _BASE + _BYTES_A_CHARACTER * self._length + states

    def begin(self) -> Matcher:
        """For one answer, of which there is nothing yet."""
        return Matcher(self._matcher.deep_copy(), self.cost, self._words, self._rows)


@dataclass(slots=True)
class _Entry:
    """A constraint that somebody has asked for."""

    length: int
    """Characters of its text."""
    future: Future[Grammar] = field(default_factory=Future)
    asking: int = 0
    """How many wait for it."""

    @property
    def grammar(self) -> Grammar | None:
        made = self.future.done() and self.future.exception() is None
        return self.future.result() if made else None

    @property
    def size(self) -> int:
        return _BYTES_A_REFUSAL + 4 * self.length if self.grammar is None else self.grammar.size

    @property
    def broken(self) -> bool:
        """Whether nobody is served by it any more."""
        return self.grammar is not None and self.grammar.cost.broken


class Compiler:
    """Any thread may ask. `close` it at the end."""

    def __init__(self, tokenizer: str, eos_token_ids: tuple[int, ...], vocabulary: int) -> None:
        """`tokenizer`: a tokenizer.json. `vocabulary`: rows of the model, which may be more than it has tokens."""
        self._kept: OrderedDict[Constraint, _Entry] = OrderedDict()
        """What was asked for last comes last."""
        self._waiting: list[tuple[float, int, Constraint, _Entry]] = []
        self._orders = count()
        self._threads = 0
        self._closed = False
        self._changed = threading.Condition()
        self._rows = vocabulary
        self._tokenizer: Future[tuple[LLTokenizer, Mapping[str, int]]] = Future()
        """And the ids of its special tokens."""
        read = partial(_read_tokenizer, tokenizer, eos_token_ids, vocabulary)
        threading.Thread(target=_settle, args=(self._tokenizer, read), name="tokenizer", daemon=True).start()

    def compile(self, constraint: Constraint) -> Future[Grammar]:
        """It raises GrammarError for what cannot be enforced. Whoever does not wait any more calls `forget`."""
        with self._changed:
            entry = self._kept.get(constraint)
            if entry is None or entry.broken:
                self._make_room()
                entry = self._kept[constraint] = _Entry(len(constraint.text))
                turn = time.monotonic() + _PATIENCE * len(constraint.text) / MOST_BYTES
                heappush(self._waiting, (turn, next(self._orders), constraint, entry))
                self._changed.notify()
                if self._threads < THREADS:
                    self._threads += 1
                    threading.Thread(target=self._run, name="grammar", daemon=True).start()
            entry.asking += not entry.future.done()
            self._kept.move_to_end(constraint)
            return entry.future

    def forget(self, constraint: Constraint) -> None:
        """One of those that asked for it does not wait any more. When none does, it is not begun."""
        with self._changed:
            entry = self._kept.get(constraint)
            if entry is None or entry.future.done():
                return
            entry.asking -= 1
            if entry.asking == 0 and entry.future.cancel():
                del self._kept[constraint]
                self._waiting = [each for each in self._waiting if each[3] is not entry]
                heapify(self._waiting)

    def close(self) -> None:
        """What is not begun by now is not made."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        stand_back(PATIENT)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                _, _, constraint, entry = heappop(self._waiting)
                entry.future.set_running_or_notify_cancel()
            _settle(entry.future, partial(self._compile, constraint))

    def _make_room(self) -> None:
        """Forget what nobody has asked for in the longest time."""
        left = sum(entry.size for entry in self._kept.values())
        for constraint, entry in list(self._kept.items()):
            if left <= _KEPT_BYTES:
                break
            if entry.future.done():
                left -= entry.size
                del self._kept[constraint]

    def _compile(self, constraint: Constraint) -> Grammar:
        try:
            return self._made(constraint)
        except GrammarError:
            if constraint.spare is None:
                raise
            return self._made(constraint.spare)

    def _made(self, constraint: Constraint) -> Grammar:
        tokenizer, special = self._tokenizer.result()
        try:
            text = grammar_of(constraint, special)
        except (ValueError, RecursionError) as error:
            raise GrammarError(short(str(error))) from None
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(short(matcher.get_error()))
        length = len(constraint.text) + len(constraint.lead)
        grammar = Grammar(matcher, -(-tokenizer.vocab_size // 32), self._rows, length)
        # The first mask is the dearest one, and there is none where no text is of this form.
        first = grammar.begin()
        first.make()
        first.mask()
        return grammar


def _settle(future: Future[T], make: Callable[[], T]) -> None:
    try:
        future.set_result(make())
    except Exception as error:
        future.set_exception(error)


def _read_tokenizer(
    tokenizer: str, eos_token_ids: tuple[int, ...], vocabulary: int
) -> tuple[LLTokenizer, Mapping[str, int]]:
    """Raises GrammarError."""
    if not eos_token_ids:
        raise GrammarError("the model names no token that ends an answer")
    tokens = json.loads(tokenizer)
    most = max((each["id"] for each in tokens.get("added_tokens", [])), default=0) + 1
    size = max(vocabulary, most, len(tokens["model"].get("vocab", ())))
    special = hide_special(tokens)
    try:
        return LLTokenizer(json.dumps(tokens), n_vocab=size, eos_token=list(eos_token_ids)), special
    except Exception as error:  # has no narrower class
        raise GrammarError(f"the model's tokenizer is of a kind that structured output cannot use: {error}") from None


def grammar_of(constraint: Constraint, special: Mapping[str, int]) -> str:
    """As llguidance takes it. `special`: ids of the tokens that a grammar may name. Raises ValueError."""
    grammar = _form(constraint, special)
    if not constraint.lead:
        return grammar
    form = json.loads(grammar)["grammars"][0] if grammar.startswith("{") else {"lark_grammar": grammar}
    return json.dumps({"grammars": [{"lark_grammar": constraint.lead}, {**form, "name": "form"}]})


def _form(constraint: Constraint, special: Mapping[str, int]) -> str:
    match constraint.kind:
        case Kind.JSON_SCHEMA:
            check_schema(json.loads(constraint.text))
            options: dict[str, Any] = {"whitespace_pattern": _SPACE, "lenient": constraint.lenient}
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=options)  # type: ignore[arg-type]
        case Kind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case Kind.CHOICE:
            # One expression: as rules of a grammar, thousands would be looked at for each token.
            return LLMatcher.grammar_from_regex("|".join(map(re.escape, json.loads(constraint.text))))
        case Kind.GRAMMAR:
            return with_ids(grammar_from("grammar", constraint.text), special)
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
