"""Results on their way home."""

from dataclasses import dataclass

from headwater_engine.core.step import Result


@dataclass(slots=True)
class Arrived:
    """A result that is on the host already: the sampler waits for the device itself."""

    result: Result

    def wait(self) -> Result:
        return self.result
