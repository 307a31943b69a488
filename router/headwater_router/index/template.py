"""A model's chat template, rendered as `transformers` does it, in whose dialect it is written.

A template is a program, and it runs on a thread of the router, where nothing could end it. So it counts its steps: the
turns of its loops, its calls, and the numbers of its ranges. One that takes more than any prompt needs is over. That
keeps a mistake in one from taking the threads of all; it is no wall against one that is meant to do harm, which could
ask for all of the memory in a step.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

_MOST_STEPS: Final = 1 << 18
"""Of one prompt: 32 for each value that a client may send (`index.tokenizer`), or a second or two."""


class _EndlessError(Exception):
    """It has taken too many steps."""


class ChatTemplate:
    """For several threads."""

    def __init__(self, source: str) -> None:
        """Raises ValueError for one that is not valid."""
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # What is constant in it is worked out, which may raise anything.
            raise ValueError(f"the chat template is not valid: {error}") from None

    def render(self, values: Mapping[str, Any]) -> str | None:
        """None where it raises anything: the engine will refuse the request, and say why."""
        self._environment.begin()
        try:
            return self._template.render(values)
        except Exception:
            return None


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; it changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self._steps = threading.local()
        self.filters["tojson"] = _tojson
        self.filters[_COUNTED] = self._counted
        self.globals["raise_exception"] = _raise_exception
        self.globals["range"] = self._range
        self.globals["strftime_now"] = lambda format: datetime.now().strftime(format)

    def begin(self) -> None:
        """A prompt is to be rendered, on this thread."""
        self._steps.left = _MOST_STEPS

    def call(self, context: Context, of: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._count(1)
        return super().call(context, of, *args, **kwargs)

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return super()._generate(source, *args, **kwargs)

    def _count(self, steps: int) -> None:
        """Raises _EndlessError."""
        self._steps.left -= steps
        if self._steps.left < 0:
            raise _EndlessError

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._count(1)
            yield item

    def _range(self, *args: int) -> range:
        numbers = safe_range(*args)
        self._count(len(numbers))
        return numbers


_COUNTED: Final = " counted"
"""A filter that no template can name."""


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
