"""The KV caches of a model's layers, and how far a step has got."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from headwater_engine.kernels.interface import LayerCache


class LayerCaches(list[LayerCache]):
    """Each layer takes its cache as it begins, by iteration or by number: that tells that the one before is done."""

    def __init__(self, caches: Iterable[LayerCache], beat: Callable[[], None]) -> None:
        """`beat` is called as each layer begins."""
        super().__init__(caches)
        self._beat = beat

    def __iter__(self) -> Iterator[LayerCache]:
        for cache in super().__iter__():
            self._beat()
            yield cache

    def __getitem__(self, layer: Any) -> Any:
        self._beat()
        return super().__getitem__(layer)
