"""Which LoRA adapters an engine should have where they compute.

An engine has slots for some of its adapters. A request for one that is in none waits until it was copied there, and so
do all answers beside it, as that is done between two steps; where no slot is free, the adapter that was longest unused
has to go, and comes back some time later.

Engines say how many slots there are, and which adapters their requests use (vLLM: `vllm:lora_requests_info`), seconds
late, and nothing of those that lie there unused. So what they say and what we sent is kept in the order of use, as they
do it themselves. Where an engine tells nothing, nothing is assumed.
"""

from typing import Final

from headwater.backends.metrics import Adapters

LOADING_SECONDS: Final = 0.1
"""An assumption between two cases: of rank 64, the largest that our launchers allow, an adapter of all linear layers of
an 8B model has 168 million parameters, 336 MB in bfloat16. That is about 15 ms over PCIe 4 (25 GB/s) from the host's
memory, where vLLM keeps some, and 0.3 s from a disk (1 GB/s). Too low costs little: a copy more now and then."""


class Slots:
    """Of one engine."""

    __slots__ = ("_most", "_names")

    def __init__(self) -> None:
        self._most = 0
        """0: it does not say."""
        self._names: dict[str, None] = {}
        """The longest unused first."""

    @property
    def full(self) -> bool:
        return len(self._names) >= self._most

    def told(self, adapters: Adapters | None) -> None:
        """By its gauges. None: they said nothing."""
        self._most = adapters.slots if adapters is not None else 0
        if adapters is not None:
            for name in adapters.names:
                self.used(name)

    def used(self, name: str) -> None:
        """A request for it goes there."""
        if not self._most:
            return
        names = self._names
        names.pop(name, None)
        names[name] = None
        while len(names) > self._most:
            del names[next(iter(names))]

    def lack(self, name: str) -> bool:
        return self._most > 0 and name not in self._names
