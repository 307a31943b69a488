"""Whether an object is as it was rendered, and where not, in words."""

from typing import Any

from headwater_operator.cluster.kinds import Object


def differences(rendered: Object, live: Object) -> list[str]:
    """Paths of fields that the rendered object names and the live one has otherwise.

    Fields that only the live one has are defaults, or somebody else's. Quantities and the like that the API server
    writes in another way show up as well: applying them again changes nothing, which the caller remembers.
    """
    found: list[str] = []
    _compare(rendered, live, "", found)
    return found


def _compare(rendered: Any, live: Any, path: str, found: list[str]) -> None:
    match rendered:
        case dict():
            if not isinstance(live, dict):
                # None stands for what is not to be there: see render.context.Inherited.
                if any(value is not None for value in rendered.values()) or live is not None:
                    found.append(path)
                return
            for name, value in rendered.items():
                _compare(value, live.get(name), f"{path}.{name}" if path else name, found)
        case list():
            if not isinstance(live, list) or len(live) != len(rendered):
                if rendered or live:
                    found.append(path)
                return
            for number, (wanted, there) in enumerate(zip(rendered, live, strict=True)):
                _compare(wanted, there, f"{path}[{number}]", found)
        case _:
            if rendered != live and not (not rendered and live is None):
                found.append(path)
