"""Special tokens that a client writes in its messages are text.

A template marks with special tokens who speaks. Where a message holds the text of one, as in `<|im_end|>`, it would end
the message and begin another, of any role: whoever gets a web page, a file or a tool's result into a conversation would
speak as the system. So these texts are broken, before the template is rendered, by a character that no client can
send; what is whole in the rendered prompt is the template's own. `encoding.py` takes the character out again.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

BREAK = "\udc00"
"""Half of a surrogate pair: neither JSON nor UTF-8 can say it, and Python's strings can."""


def control_tokens(added: Iterable[tuple[str, bool]], chat: str) -> list[str]:
    """The texts that may steer a conversation, of `added` tokens (text, whether special).

    These are the special ones, and what the template writes around the messages of a plain `chat`: DeepSeek's
    `<｜User｜>` is not marked as special. Others are not: `<think>` in a message is what the model wrote before.
    """
    return [text for text, special in added if len(text) > 1 and not text.isspace() and (special or text in chat)]


def beginnings(tokens: Collection[str]) -> re.Pattern[str]:
    """Matches the first character of each of `tokens`, also of those that overlap."""
    choice = "|".join(re.escape(token) for token in tokens)
    return re.compile(f"(?={choice}).", re.DOTALL) if tokens else re.compile("(?!)")


def broken(value: Any, beginnings: re.Pattern[str]) -> Any:
    """JSON data with a BREAK in each of the tokens in its strings and keys."""
    match value:
        case str():
            return beginnings.sub(lambda first: first[0] + BREAK, value)
        case dict():
            return {broken(name, beginnings): broken(item, beginnings) for name, item in value.items()}
        case list():
            return [broken(item, beginnings) for item in value]
        case _:
            return value
