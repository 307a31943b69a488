"""Texts with calls in them: the same ones in every format, with arguments that are hard to read, as templates do it."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TOOLS: dict[str, dict[str, Any]] = {
    "note": {"text": {"type": "string"}, "tags": {"type": "array"}, "more": {"type": "object"}},
    "count": {"n": {"type": "integer"}, "x": {"type": "number"}, "sure": {"type": "boolean"}},
    "clock": {},
}
"""Properties of the arguments of each function; none of them must be there."""
_TEXTS = [
    *("", " ", "Bern", "two\nlines\n", " spaced ", 'say "hi"', "it's", "back\\slash", "C:\\new\\table", "a\tb"),
    *("{", "}", "[1, 2]", '{"a": 1}', "a, b=c)", "f(x)", "]]", "12", "true", "null", "None", "#", "```", "/* */"),
    *("Zürich", "京都 🌸", "‎עברית", "e\u0301", "<b>bold</b>", "a < b > c", "&amp;", "%s {0}", "name", '", "name": "x'),
]
_NUMBERS: list[Any] = [0, -1, 7, 10**12, 0.5, -2.25, 1e-7, 1e21]
Made = tuple[str, dict[str, Any]]
"""A function's name, and arguments."""


@dataclass(frozen=True, slots=True)
class Text:
    id: str
    format: str
    """Our name of it."""
    text: str
    calls: list[Made]
    """That were written."""


def made(count: int = 24) -> Iterator[Text]:
    """The same each time."""
    for number in range(count):
        rng = random.Random(number)
        calls = [make_call(rng) for _ in range(1 + number % 3)]
        for name, write in WRITERS.items():
            yield Text(f"{name}/{number}", name, write(calls), calls)


def make_call(rng: random.Random) -> Made:
    name = rng.choice(list(TOOLS))
    values = {
        "text": lambda: rng.choice(_TEXTS),
        "tags": lambda: rng.sample(_TEXTS, 2),
        "more": lambda: {"a": rng.choice(_TEXTS), "b": [rng.choice(_NUMBERS), None, True]},
        "n": lambda: rng.choice([each for each in _NUMBERS if isinstance(each, int)]),
        "x": lambda: rng.choice(_NUMBERS),
        "sure": lambda: rng.random() < 0.5,
    }
    return name, {each: values[each]() for each in TOOLS[name] if rng.random() < 0.8}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _hermes(calls: list[Made]) -> str:
    return "\n".join(f"<tool_call>\n{_json({'name': name, 'arguments': of})}\n</tool_call>" for name, of in calls)


def _qwen3_coder(calls: list[Made]) -> str:
    def argument(name: str, value: Any) -> str:
        return f"<parameter={name}>\n{value if isinstance(value, str) else _json(value)}\n</parameter>\n"

    def call(name: str, of: dict[str, Any]) -> str:
        arguments = "".join(argument(*each) for each in of.items())
        return f"<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>"

    return "\n".join(call(*each) for each in calls)


def _llama3(calls: list[Made]) -> str:
    return "; ".join(_json({"name": name, "parameters": of}) for name, of in calls)


def _mistral(calls: list[Made]) -> str:
    return "[TOOL_CALLS]" + _json([{"name": name, "arguments": of} for name, of in calls])


def _mistral_11(calls: list[Made]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(of)}" for name, of in calls)


def _deepseek_v3(calls: list[Made]) -> str:
    each = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(of)}\n```<｜tool▁call▁end｜>"
        for name, of in calls
    )
    return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: list[Made]) -> str:
    each = "".join(f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(of)}<｜tool▁call▁end｜>" for name, of in calls)
    return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"


def _dsml(mark: str, all_of_them: str, calls: list[Made]) -> str:
    def argument(name: str, value: Any) -> str:
        is_text = isinstance(value, str)
        head = f'<{mark}parameter name="{name}" string="{str(is_text).lower()}">'
        return f"{head}{value if is_text else _json(value)}</{mark}parameter>\n"

    def call(name: str, of: dict[str, Any]) -> str:
        return f'<{mark}invoke name="{name}">\n{"".join(argument(*each) for each in of.items())}</{mark}invoke>\n'

    return f"<{mark}{all_of_them}>\n{''.join(call(*each) for each in calls)}</{mark}{all_of_them}>"


def _pythonic(calls: list[Made]) -> str:
    return (
        "["
        + ", ".join(f"{name}({', '.join(f'{key}={value!r}' for key, value in of.items())})" for name, of in calls)
        + "]"
    )


def _harmony(calls: list[Made]) -> str:
    each = (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_json(of)}<|call|>"
        for name, of in calls
    )
    return "<|start|>assistant".join(each)


WRITERS = {
    "hermes": _hermes,
    "qwen3_coder": _qwen3_coder,
    "llama3_json": _llama3,
    "mistral": _mistral,
    "mistral 11": _mistral_11,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "deepseek_v32": lambda calls: _dsml("｜DSML｜", "function_calls", calls),
    "deepseek_v4": lambda calls: _dsml("｜DSML｜", "tool_calls", calls),
    "deepseek_v41": lambda calls: _dsml("｜DSML｜ ", "calls", calls),
    "pythonic": _pythonic,
    "harmony": _harmony,
}
"""By our name of the format, and more where it has two ways."""
