"""A picker for each policy in use: deployments choose theirs, and all share one index."""

import random
from collections.abc import Iterator
from typing import Final

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker import POLICIES, make
from headwater_router.picker.base import Picker, Prompt
from headwater_router.picker.learned import Lesson
from headwater_router.picker.objective import Objective
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.speed import Speed

_OBJECTIVES: Final = frozenset(Objective)


class Policies:
    def __init__(
        self,
        default: str,
        index: PrefixIndex,
        rng: random.Random | None = None,
        objective: Objective = Objective.LATENCY,
    ) -> None:
        """Raises ValueError if there is no policy of the name `default`."""
        self._default = default
        self._objective = objective
        self.index = index
        self._rng = rng
        self._pickers: dict[tuple[str, Objective], Picker] = {}
        self.of(None)

    def of(self, policy: str | None, objective: str | None = None) -> Picker:
        """The default ones for None, and for names that are unknown here: those of a resource from a newer release."""
        key = self.name(policy), Objective(objective) if objective in _OBJECTIVES else self._objective
        picker = self._pickers.get(key)
        if picker is None:
            picker = self._pickers[key] = make(key[0], self.index, self._rng, key[1])
        return picker

    def name(self, policy: str | None) -> str:
        return policy if policy in POLICIES else self._default

    def held(self, prompt: Prompt, now: float) -> int:
        """Leading blocks of its text that some endpoint should hold."""
        return self.index.match(prompt.text_chain, now).longest

    def speed(self, target_id: str) -> Speed | None:
        """What was learned of an endpoint. None: nothing, or no policy in use learns it."""
        found = (picker.speed(target_id) for picker in self._learning())
        return next((speed for speed in found if speed is not None), None)

    def forget_speed(self, target_id: str) -> None:
        for picker in self._learning():
            picker.forget_speed(target_id)

    def take_lessons(self) -> list[Lesson]:
        """What was learned of speeds lately and not taken yet, for other routers."""
        found: list[Lesson] = []
        for picker in self._learning():
            found += picker.learned.lessons
            picker.learned.lessons.clear()
        return found

    def learn(self, lesson: Lesson, now: float) -> None:
        """What another router learned."""
        for picker in self._learning():
            picker.learned.take(lesson, now)

    def forget(self, target_id: str) -> None:
        """The endpoint is gone, or its cache is."""
        self.index.forget(target_id)  # What KV events and other routers told of it, before any picker was asked.
        for picker in self._pickers.values():
            picker.forget(target_id)

    def _learning(self) -> Iterator[PrefixPicker]:
        return (picker for picker in self._pickers.values() if isinstance(picker, PrefixPicker))
