"""All formats by their names for `--tool-call-parser` and `--reasoning-parser`, and which of them is a model's."""

import json
from collections.abc import Iterable
from typing import Final

from headwater_engine.formats.call_format import CallFormat
from headwater_engine.formats.deepseek import DeepSeekV3, DeepSeekV31
from headwater_engine.formats.functions import Function
from headwater_engine.formats.harmony import Harmony
from headwater_engine.formats.hermes import Hermes
from headwater_engine.formats.llama3 import Llama3
from headwater_engine.formats.mistral import Mistral
from headwater_engine.formats.parts import Arguments, Call, joined
from headwater_engine.formats.pythonic import Pythonic
from headwater_engine.formats.reader import Reader, Speech
from headwater_engine.formats.tagged import DSML, DSMLOfV4, DSMLOfV41, Qwen3Coder
from headwater_engine.formats.thinking import DEEPSEEK_R1, MISTRAL, SEED, THINK, Thinking

HARMONY: Final = Harmony()
CALL_FORMATS: Final[tuple[CallFormat, ...]] = (
    Hermes(),
    Qwen3Coder(),
    Llama3(),
    Mistral(),
    DeepSeekV31(),
    DeepSeekV3(),  # which reads V3.1's, too
    DSML(),
    DSMLOfV4(),
    DSMLOfV41(),
    Pythonic(),
    HARMONY,
)
THINKING: Final[tuple[Thinking, ...]] = (THINK, DEEPSEEK_R1, MISTRAL, SEED)

CALL_FORMAT_OF: Final = {name: each for each in CALL_FORMATS for name in each.names}
THINKING_OF: Final = {name: each for each in THINKING for name in each.names}


def format_that_reads(texts: Iterable[str], name: str, arguments: dict[str, str]) -> CallFormat | None:
    """The format of a template that wrote a call of `name` as one of `texts`: the one that reads it there."""
    for text in texts:
        for each in CALL_FORMATS:
            if _reads(each, text, name, arguments):
                return each
    return None


def _reads(form: CallFormat, text: str, name: str, arguments: dict[str, str]) -> bool:
    function = Function(name, {"properties": {key: {"type": "string"} for key in arguments}})
    reader = Reader(Speech(form), {name: function})
    match [part for part in joined([*reader.feed(text), *reader.flush()]) if isinstance(part, Call | Arguments)]:
        case [Call(0, said), Arguments(0, written)] if said == name:
            try:
                return bool(json.loads(written) == arguments)
            except ValueError:
                return False
    return False


def thinking_in(template: str) -> Thinking | None:
    """Of a model whose chat template has this text: one that knows where reasoning ends."""
    return next((each for each in (THINK, MISTRAL, SEED) if each.end in template), None)
