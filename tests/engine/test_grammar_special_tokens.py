"""What special tokens are called is text in a form, as in a message."""

import json
import re
from collections.abc import Iterator

import pytest

from headwater.openai.constraint import Kind
from headwater_engine.grammar.compiler import Compiler
from tests.engine import chat_models
from tests.engine.test_grammar import allowed, begin


@pytest.fixture(scope="module", params=["smollm2", "qwen3"])
def real(request: pytest.FixtureRequest) -> Iterator[tuple[Compiler, int]]:
    """Of a model's own tokenizer, and its end of answers."""
    tokenizer = chat_models.tokenizer(request.param)
    compiler = Compiler(tokenizer.backend_tokenizer.to_str(), (tokenizer.eos_token_id,), len(tokenizer))
    yield compiler, tokenizer.eos_token_id
    compiler.close()


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_start|>", "a <|endoftext|> b"])
@pytest.mark.parametrize("kind", [Kind.CHOICE, Kind.REGEX, Kind.GRAMMAR, Kind.JSON_SCHEMA])
def test_the_name_of_a_special_token_in_a_form_is_text(real: tuple[Compiler, int], kind: Kind, text: str) -> None:
    compiler, end = real
    quoted = json.dumps(text)
    written = {
        Kind.CHOICE: f"[{quoted}]",
        Kind.REGEX: re.escape(text),
        Kind.GRAMMAR: f"start: {quoted}",
        Kind.JSON_SCHEMA: f'{{"enum":[{quoted}]}}',
    }
    tokenizer = compiler._tokenizer.result(60)[0]
    matcher = begin(compiler, kind, written[kind])
    said: list[int] = []
    while not matcher.ended:
        tokens = [token for token in allowed(matcher) if token != end]
        said.append(tokens[0])
        matcher.advance(tokens[0])
    assert not any(map(tokenizer.is_special_token, said))
    assert tokenizer.decode_str(said) == (quoted if kind is Kind.JSON_SCHEMA else text)


def test_a_grammar_may_name_special_tokens(real: tuple[Compiler, int]) -> None:
    compiler, _ = real
    special = compiler._tokenizer.result(60)[1]["<|im_start|>"]
    matcher = begin(compiler, Kind.GRAMMAR, 'start: "<|im_start|>a" <|im_start|>')
    while special not in (tokens := allowed(matcher)):
        matcher.advance(tokens[0])
    assert tokens == [special]
