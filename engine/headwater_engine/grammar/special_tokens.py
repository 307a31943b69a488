"""Special tokens and the texts that answers may have: `<|im_end|>` in a form is ten letters, and not the end of a turn.

Where a form forces a text, llguidance writes it as the tokenizer does, which takes the name of a special token for that
token. So it is given a tokenizer in which they have names that no text has.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

_NAMED: Final = re.compile(
    r"""
    "(?:\\.|[^"\\])*" | /(?:\\.|[^/\\\n])+/ | //.* | \#.*  # texts, expressions and comments, which name no token
    | (?P<name><[^<>\s]+>)
    """,
    re.VERBOSE,
)


def hide_special(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Rename the special tokens of what was a tokenizer.json; the ids that they have by their former names."""
    secret = secrets.token_hex(8)
    model = tokenizer["model"]
    hidden: dict[str, str] = {}
    special: dict[str, int] = {}
    for token in tokenizer.get("added_tokens", ()):
        if token.get("special"):
            special[token["content"]] = token["id"]
            hidden[token["content"]] = token["content"] = f"<|{secret}-{token['id']}|>"
    if isinstance(vocabulary := model.get("vocab"), dict):
        model["vocab"] = {hidden.get(name, name): number for name, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[hidden.get(name, name), score] for name, score in vocabulary]
    if (unknown := model.get("unk_token")) is not None:
        model["unk_token"] = hidden.get(unknown, unknown)
    tokenizer["post_processor"] = None  # it adds tokens by their names, and none are to be added
    return special


def with_ids(grammar: str, special: Mapping[str, int]) -> str:
    """A grammar in Lark that names special tokens, with their ids instead."""
    return _NAMED.sub(lambda found: _with_id(found, special), grammar)


def _with_id(found: re.Match[str], special: Mapping[str, int]) -> str:
    number = special.get(found["name"]) if found["name"] else None
    return found[0] if number is None else f"<[{number}]>"
