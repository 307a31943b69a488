"""How long answers last, by model: a fading mean."""

from typing import Final

_TYPICAL: Final = 1.0
"""Seconds that an answer is taken to last before there was any."""
_LEARNING: Final = 0.05


class Durations:
    def __init__(self) -> None:
        self._typical: dict[str, float] = {}

    def learn(self, model: str, seconds: float) -> None:
        """An answer took so long."""
        typical = self._typical.get(model, _TYPICAL)
        self._typical[model] = typical + _LEARNING * (seconds - typical)

    def of(self, model: str) -> float:
        """Seconds."""
        return self._typical.get(model, _TYPICAL)
