"""What an engine says that it serves: its /v1/models, of which nothing is believed but what makes sense."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from headwater_router.endpoints.endpoint import ServedModel

MOST_MODELS: Final = 4096
"""Of one endpoint; further ones are passed over."""
_LONGEST_NAME: Final = 512
_MOST_TOKENS: Final = 2**53


def read_models(body: bytes) -> Sequence[ServedModel]:
    """Raises ValueError for what is no list of models. A card that makes no sense is passed over."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is not JSON") from None
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise ValueError("it is no list of models")
    cards: dict[str, dict[str, Any]] = {}
    for card in data:
        if isinstance(card, dict) and (name := _text(card.get("id"))) and len(cards) < MOST_MODELS:
            cards.setdefault(name, card)
    # The first name of the same weights stands for all of them.
    bases: dict[str, str] = {}
    for name, card in cards.items():
        if not _text(card.get("parent")):
            bases.setdefault(_text(card.get("root")) or name, name)
    return [_model(name, card, bases) for name, card in cards.items()]


def _model(name: str, card: dict[str, Any], bases: dict[str, str]) -> ServedModel:
    parent, root, length = _text(card.get("parent")), _text(card.get("root")), card.get("max_model_len")
    known = type(length) is int and 0 < length < _MOST_TOKENS
    return ServedModel(
        name,
        base=parent or bases[root or name],
        adapter=name if parent else "",
        root=root,
        owned_by=_text(card.get("owned_by")),
        max_model_len=length if known else None,
    )


def _text(value: object) -> str:
    """Empty for what is no text that a line can show."""
    return value if isinstance(value, str) and len(value) <= _LONGEST_NAME and value.isprintable() else ""
