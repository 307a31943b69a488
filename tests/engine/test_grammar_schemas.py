"""Whether a schema can be held to is known before an answer begins, and does not depend on what that says."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headwater.openai.constraint import MOST_DEEP, Kind
from headwater_engine.grammar.compiler import Compiler
from headwater_engine.grammar.matcher import GrammarError
from tests.engine import chat_models
from tests.engine.test_grammar import allowed, begin


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[Compiler, int]]:
    """Of a model's own tokenizer, and its end of answers."""
    tokenizer = chat_models.tokenizer("smollm2")
    compiler = Compiler(tokenizer.backend_tokenizer.to_str(), (tokenizer.eos_token_id,), len(tokenizer))
    yield compiler, tokenizer.eos_token_id
    compiler.close()


def test_whether_members_that_may_be_left_out_are_too_many_is_known_before_an_answer_begins(
    real: tuple[Compiler, int],
) -> None:
    compiler, _ = real

    def schema(count: int, required: int = 0) -> str:
        names = [f"p{number}" for number in range(count)]
        return json.dumps({"properties": {name: {"type": "integer"} for name in names}, "required": names[:required]})

    begin(compiler, Kind.JSON_SCHEMA, schema(300, required=60))
    matcher = begin(compiler, Kind.JSON_SCHEMA, schema(256))
    for token in compiler._tokenizer.result(60)[0].tokenize_str('{"p70":1,"p71":2'):
        matcher.advance(token)
    assert allowed(matcher)
    for many in (257, 1500):
        with pytest.raises(GrammarError, match="up to `p256`, more than 256 members in a row need not be there"):
            begin(compiler, Kind.JSON_SCHEMA, schema(many))


@pytest.mark.parametrize("step", [("items", {"type": "array"}), ("a", None)])
def test_a_schema_of_as_many_levels_as_may_be_is_held(real: tuple[Compiler, int], step: tuple[str, Any]) -> None:
    compiler, _ = real
    name, around = step

    def deep(levels: int) -> str:
        schema: Any = {"type": "integer"}
        for _ in range(levels):
            schema = {**around, name: schema} if around else {"properties": {name: schema}}
        return json.dumps(schema)

    most = MOST_DEEP - 1 if around else (MOST_DEEP - 1) // 2
    begin(compiler, Kind.JSON_SCHEMA, deep(most))
    with pytest.raises(GrammarError, match=f"more than {MOST_DEEP} levels"):
        begin(compiler, Kind.JSON_SCHEMA, deep(most + 1))
