"""Which of several deployments of a model an endpoint of flags or a file belongs to, and what share that one gets."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from headwater_router.endpoints.address import EndpointError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""Without a slash, which the names of ModelDeployments have."""
_WEIGHT: Final = re.compile(r"[0-9]{1,7}", re.ASCII)
_HEAVIEST: Final = 1_000_000


class Share(StrEnum):
    """Who says which share of a name's requests a deployment gets."""

    WEIGHT = "Weight"
    AUTO = "Auto"
    """The router, by what they cost there."""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints that are alike. Equal are those of one name: weight and share may change while endpoints stay."""

    name: str = ""
    """Empty: of all who say nothing."""
    weight: int = field(default=100, compare=False)
    share: Share = field(default=Share.WEIGHT, compare=False)

    @classmethod
    def of(cls, url: str, settings: Mapping[str, str]) -> "Group":
        """Raises EndpointError."""
        name, weight, share = (settings.get(each) for each in ("deployment", "weight", "share"))
        if name is None:
            if weight is not None or share is not None:
                raise EndpointError(f"endpoint {url}: weight and share are of a deployment: give it a name")
            return cls()
        if not _NAME.fullmatch(name):
            raise EndpointError(
                f"endpoint {url}: deployment must be letters, digits, '.', '_' and '-', 63 at most, and begin with one "
                "of the first two"
            )
        if weight is not None and not (_WEIGHT.fullmatch(weight) and int(weight) <= _HEAVIEST):
            raise EndpointError(f"endpoint {url}: weight must be a whole number, 0 to {_HEAVIEST}")
        if share not in (None, *Share):
            raise EndpointError(f"endpoint {url}: share must be {' or '.join(Share)}")
        return cls(name, 100 if weight is None else int(weight), Share(share or Share.WEIGHT))


UNNAMED: Final = Group()


def agree(groups: Iterable[Group]) -> None:
    """Raises EndpointError where two say something else of one deployment."""
    said: dict[str, Group] = {}
    for group in groups:
        other = said.setdefault(group.name, group)
        if (group.weight, group.share) != (other.weight, other.share):
            raise EndpointError(f"endpoints of the deployment {group.name!r} must say the same weight and share")
