"""A picker for each policy in use: deployments choose theirs, and all share one index."""

import random

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker import POLICIES, make
from headwater_router.picker.base import Picker
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.speed import Speed


class Policies:
    def __init__(self, default: str, index: PrefixIndex, rng: random.Random | None = None) -> None:
        """Raises ValueError if there is no policy of the name `default`."""
        self._default = default
        self._index = index
        self._rng = rng
        self._pickers: dict[str, Picker] = {}
        self.of(None)

    def of(self, policy: str | None) -> Picker:
        """The default one for None, and for a name that is unknown here: that of a resource from a newer release."""
        name = self.name(policy)
        picker = self._pickers.get(name)
        if picker is None:
            picker = self._pickers[name] = make(name, self._index, self._rng)
        return picker

    def name(self, policy: str | None) -> str:
        return policy if policy in POLICIES else self._default

    def speed(self, target_id: str) -> Speed | None:
        """What was learned of an endpoint. None: nothing, or no policy in use learns it."""
        found = (picker.speed(target_id) for picker in self._pickers.values() if isinstance(picker, PrefixPicker))
        return next((speed for speed in found if speed is not None), None)

    def forget_speed(self, target_id: str) -> None:
        for picker in self._pickers.values():
            if isinstance(picker, PrefixPicker):
                picker.forget_speed(target_id)

    def forget(self, target_id: str) -> None:
        """The endpoint is gone, or its cache is."""
        self._index.forget(target_id)  # What KV events and other routers told of it, before any picker was asked.
        for picker in self._pickers.values():
            picker.forget(target_id)
