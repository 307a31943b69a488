"""One answer's text, read as it comes, in the way in which its model speaks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from headwater_engine.formats.call_format import CallFormat
from headwater_engine.formats.functions import Functions
from headwater_engine.formats.harmony import Harmony
from headwater_engine.formats.parts import Arguments, Call, Content, Part, Reasoning
from headwater_engine.formats.text import Reading, Text
from headwater_engine.formats.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Speech:
    """How a model writes what is more than content."""

    calls: CallFormat | None = None
    thinking: Thinking | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must be seen, though they may be special tokens."""
        return (*(self.calls.markers if self.calls else ()), *(self.thinking.markers if self.thinking else ()))

    @property
    def names(self) -> tuple[str | None, str | None]:
        """Of the formats of calls and of reasoning."""
        calls = self.calls.names[0] if self.calls else None
        return calls, calls if self.has_channels else self.thinking.names[0] if self.thinking else None

    @property
    def has_channels(self) -> bool:
        """Whether each answer has to be read, whatever was asked for."""
        return isinstance(self.calls, Harmony)


class Reader:
    """What `feed` and `flush` give, joined, does not depend on how the text was cut."""

    def __init__(
        self,
        speech: Speech,
        functions: Functions,
        *,
        is_open: bool = False,
        most_calls: int | None = None,
        only_calls: bool = False,
    ) -> None:
        """`functions`: none, so there are no calls to be found. `is_open`: it begins within reasoning.

        `most_calls`: with one more the answer is complete, and that one is not part of it. `only_calls`: a grammar
        holds the answer to calls, so that content is the beginning of one, which was cut off before it had a name.
        """
        self._text = Text()
        self._reading = self._read(speech, functions, is_open=is_open)
        self._tidy = _Tidy()
        self._most_calls = most_calls
        self._only_calls = only_calls
        self.reasons = is_open
        """Whether what came last is reasoning."""
        self.complete = False

    def _read(self, speech: Speech, functions: Functions, *, is_open: bool) -> Reading[None]:
        calls = speech.calls if functions or speech.has_channels else None
        if speech.thinking is not None and not speech.has_channels:
            yield from speech.thinking.read(self._text, is_open=is_open, trigger=calls.trigger if calls else "")
        if calls is not None:
            yield from calls.read(self._text, functions)
        while not self._text.ended:
            yield Content(self._text.rest())
            yield None
        yield Content(self._text.rest())

    def feed(self, text: str) -> list[Part]:
        self._text.add(text)
        return list(self._tidied(self._more()))

    def flush(self) -> list[Part]:
        """What is left, since nothing follows."""
        self._text.ended = True
        return [*self._tidied(self._more()), *self._tidy.flush()]

    def _more(self) -> Iterator[Part]:
        for part in self._reading:
            if part is not None:
                yield part
            elif not self._text.ended:
                return

    def _tidied(self, parts: Iterable[Part]) -> Iterator[Part]:
        for part in parts:
            if isinstance(part, Call) and self._most_calls is not None and part.number >= self._most_calls:
                self.complete = True
            if self.complete:
                return
            if self._only_calls and isinstance(part, Content):
                continue
            self.reasons = isinstance(part, Reasoning)
            yield from self._tidy.take(part)


@dataclass(slots=True)
class _Tidy:
    """Leaves out the white space that a format has around reasoning and calls. What is only content stays as it is."""

    _held: str = ""
    """White space at the end of what was said last."""
    _last: type[Part] | None = None
    _space_counts: bool = True
    """Whether white space that comes next is part of what is said."""
    _called: bool = field(default=False)

    def take(self, part: Part) -> Iterator[Part]:
        match part:
            case Call() | Arguments():
                self._called = True
                self._held, self._last, self._space_counts = "", type(part), False
                yield part
            case Content(text) | Reasoning(text):
                if type(part) is not self._last:
                    self._space_counts = self._last is None and isinstance(part, Content)
                    self._held, self._last = "", type(part)
                text = self._held + text
                if not self._space_counts:
                    text = text.lstrip()
                said = text.rstrip()
                self._held = text[len(said) :]
                if said:
                    self._space_counts = True
                    yield type(part)(said)

    def flush(self) -> list[Part]:
        keeps = self._last is Content and not self._called and self._space_counts
        held, self._held = self._held, ""
        return [Content(held)] if held and keeps else []
