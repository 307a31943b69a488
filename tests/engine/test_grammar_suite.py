"""JSON Schema's own test suite against the grammars of schemas: what cannot be enforced is refused by name, and of what
is enforced no instance is taken that is not valid.

The suite is draft 2020-12's without its optional part; commit and licence are in the file.
"""

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headwater.openai.constraint import Kind
from headwater_engine.grammar.compiler import Compiler
from headwater_engine.grammar.matcher import GrammarError, Matcher
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS
from tests.engine.test_grammar import ROWS, TEXT, allowed, begin, walked

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "json-schema"
_DOCS = Path(__file__).parents[2] / "docs" / "structured-output.md"
SUITE: dict[str, list[dict[str, Any]]] = json.loads(gzip.decompress((_FIXTURES / "draft2020-12.json.gz").read_bytes()))[
    "keywords"
]
REFUSED = {
    "contains": "contains",
    "defs": "$dynamicAnchor",  # of the meta-schema, which it refers to
    "dependentRequired": "dependentRequired",
    "dependentSchemas": "dependentSchemas",
    "dynamicRef": "$dynamic",
    "if-then-else": '"if"',
    "maxContains": "maxContains",
    "minContains": "minContains",
    "not": "not",
    "propertyNames": "propertyNames",
    "refRemote": "is not part of the schema",
    "unevaluatedItems": "unevaluatedItems",
    "unevaluatedProperties": "unevaluatedProperties",
    "uniqueItems": "uniqueItems",
    "vocabulary": "is not part of the schema",
}
"""Files of the suite of which no schema is taken, and what the refusals are about."""
_OTHERWISE = {"dynamicRef": ("is not part of the schema", '"if"'), "if-then-else": ('"then"', '"else"')}
"""Where a schema of these fails by something else before it comes to that."""
_REASONS = (
    "Unimplemented keys", "Unsatisfiable schema", "Unknown format", "oneOf constraints are not supported",
    "Expected positive integer", "too many digits", "not disjoint",
)  # fmt: skip


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler(TEXT.to_str(), (BYTE_LEVEL_EOS,), ROWS)
    yield compiler
    compiler.close()


def takes(matcher: Matcher, value: Any) -> bool:
    """Whether this JSON text, and its end, are what the grammar lets through."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for token in [*TEXT.encode(text, add_special_tokens=False).ids, BYTE_LEVEL_EOS]:
        if matcher.ended:
            return bool(token == BYTE_LEVEL_EOS)
        if token not in allowed(matcher):
            return False
        matcher.advance(token)
    return True


def spellings(value: Any) -> Iterator[Any]:
    """The same to JSON Schema: whole numbers without a fraction, and members in another order. A grammar has members in
    the schema's order, and a number in one way."""
    for each in (value, _whole(value)):
        if isinstance(each, dict) and len(each) <= 4:
            yield from map(dict, itertools.permutations(each.items()))
        else:
            yield each


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(each) for each in value]
        case dict():
            return {name: _whole(each) for name, each in value.items()}
    return value


@pytest.mark.parametrize("keyword", SUITE)
def test_each_keyword_of_the_suite_is_enforced_or_refused_by_name(keyword: str, compiler: Compiler) -> None:
    taken = 0
    for group in SUITE[keyword]:
        if group["schema"] is False:
            continue  # of which no text is
        text = json.dumps({} if group["schema"] is True else group["schema"])
        try:
            begin(compiler, Kind.JSON_SCHEMA, text)
        except GrammarError as error:
            named = (REFUSED[keyword], *_OTHERWISE.get(keyword, ())) if keyword in REFUSED else _REASONS
            assert any(each in str(error) for each in named), (group["description"], str(error))
            continue
        taken += 1
        for case in group["tests"]:
            found = any(takes(begin(compiler, Kind.JSON_SCHEMA, text), each) for each in spellings(case["data"]))
            # A format is no more than a hint to the standard; here it holds.
            if not (keyword == "format" and case["description"].startswith("invalid")):
                assert found == case["valid"], (group["description"], case["description"])
    assert (taken == 0) == (keyword in REFUSED)


def test_the_docs_say_which_keywords_are_refused() -> None:
    row = next(line for line in _DOCS.read_text().splitlines() if line.startswith("| refused whole"))
    assert {name.strip("`") for name in row.split("|")[2].strip().split(", ")} == REFUSED.keys()


def test_what_is_said_in_the_schemas_of_the_suite_is_valid_by_another_library(compiler: Compiler) -> None:
    """hypothesis-jsonschema makes schemas, too, but its 0.23.1 fails with hypothesis 6.170."""
    finished = walks = 0
    for seed, schema in enumerate(group["schema"] for groups in SUITE.values() for group in groups):
        try:
            matchers = [begin(compiler, Kind.JSON_SCHEMA, json.dumps(schema)) for _ in range(2)]
        except GrammarError:
            continue
        if r"\p{" in json.dumps(schema).replace("\\\\", "\\"):
            continue  # Python's expressions, by which the other library goes, know no such classes.
        for number, matcher in enumerate(matchers):
            walks += 1
            if (text := walked(matcher, random.Random(2 * seed + number))) is not None:
                finished += 1
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert walks > 300
    assert finished > walks // 2, f"{finished} of {walks} came to an end"
