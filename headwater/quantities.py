"""Amounts as Kubernetes writes them: 2, 500m, 16Gi, 1k, 2e3. None of ours is below zero."""

import re
from decimal import Decimal
from typing import Final

AMOUNT: Final = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?"
_AMOUNT: Final = re.compile(AMOUNT)
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_MOST: Final = Decimal(2**63 - 1)
"""What is more counts as this, as in Kubernetes."""
_FAR: Final = 40
"""Powers of ten beyond which it makes no difference how many there are; to compute them could take for ever."""


def parse(amount: int | str) -> Decimal:
    """Raises ValueError for what is none."""
    found = _AMOUNT.fullmatch(str(amount))
    if found is None:
        raise ValueError(f"must be an amount such as 2, 500m or 16Gi; found {amount!r}")
    number, suffix = Decimal(found[1]), found[3] or ""
    if suffix in _BINARY:
        return min(number * Decimal(1024 ** _BINARY[suffix]), _MOST)
    power = _DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])
    return min(number * Decimal(10) ** max(-_FAR, min(power, _FAR)), _MOST)
