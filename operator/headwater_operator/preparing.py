"""What has to be there before a pod can start: the weights on their volume, and for TensorRT-LLM the built engine.

Each is the work of a Job whose result stays. Until it is there, what already runs goes on unchanged.
"""

from dataclasses import dataclass

from headwater_operator.applier import Applier
from headwater_operator.config import OperatorSettings
from headwater_operator.look import Look
from headwater_operator.render import Pin, WeightsVolume
from headwater_operator.store import Store


@dataclass(frozen=True, slots=True)
class Prepared:
    weights: WeightsVolume | None
    build_claim: str | None


class Preparing:
    def __init__(self, settings: OperatorSettings, store: Store, applier: Applier) -> None:
        self._settings = settings
        self._store = store
        self._applier = applier

    async def prepare(self, look: Look, pin: Pin) -> Prepared | None:
        """None while something is missing; the look's situation says what."""
        return Prepared(None, None)
