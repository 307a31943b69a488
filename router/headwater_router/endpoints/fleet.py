"""All endpoints, and which of them serve which model."""

from collections.abc import Callable, Iterator, Sequence

import structlog

from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec, ServedModel

log = structlog.get_logger(__name__)


class Fleet:
    """The token path reads it; discovery and probes write it."""

    def __init__(self, make_breaker: Callable[[], Breaker], forget: Callable[[str], None]) -> None:
        """`forget` is told the id of each target that is no more."""
        self._make_breaker = make_breaker
        self._forget = forget
        self._endpoints: dict[EndpointSpec, Endpoint] = {}
        self._by_model: dict[str, list[tuple[Endpoint, ServedModel]]] = {}
        self._seen_models: set[str] = set()

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(list(self._endpoints.values()))

    def __len__(self) -> int:
        return len(self._endpoints)

    def replace(self, specs: Sequence[EndpointSpec]) -> tuple[list[Endpoint], list[Endpoint]]:
        """Make `specs` all there is. Returns the endpoints that came and those that went; running answers go on."""
        gone = [endpoint for spec, endpoint in self._endpoints.items() if spec not in specs]
        new = [Endpoint(spec, self._make_breaker()) for spec in specs if spec not in self._endpoints]
        for endpoint in gone:
            del self._endpoints[endpoint.spec]
            endpoint.ready = False
            self._forget(endpoint.target.id)
        for endpoint in new:
            self._endpoints[endpoint.spec] = endpoint
        self._index_models()
        return new, gone

    def mark_ready(self, endpoint: Endpoint, models: Sequence[ServedModel]) -> None:
        if not endpoint.ready or endpoint.models != models:
            log.info("endpoint ready", endpoint=endpoint.name, models=[model.name for model in models])
        endpoint.ready = True
        if endpoint.models != models:
            endpoint.models = models
            self._index_models()

    def mark_unready(self, endpoint: Endpoint, reason: str) -> None:
        if endpoint.ready:
            log.warning("endpoint not ready", endpoint=endpoint.name, reason=reason)
        endpoint.ready = False

    def mark_dead(self, endpoint: Endpoint, reason: str) -> None:
        """Nobody listens there: whoever comes back is a new process with an empty cache."""
        was_ready = endpoint.ready
        self.mark_unready(endpoint, reason)
        if was_ready:
            self.begin_new_life(endpoint)

    def begin_new_life(self, endpoint: Endpoint) -> None:
        self._forget(endpoint.target.id)
        endpoint.new_life()

    def serving(self, model: str) -> list[tuple[Endpoint, ServedModel]]:
        """Whether they are ready or not."""
        return self._by_model.get(model, [])

    @property
    def models(self) -> list[str]:
        """That at least one endpoint has served, while it was among us."""
        return sorted(self._seen_models)

    @property
    def undiscovered(self) -> bool:
        """Whether an endpoint has not said yet what it serves."""
        return any(not endpoint.models for endpoint in self._endpoints.values())

    def _index_models(self) -> None:
        self._by_model = {}
        for endpoint in self._endpoints.values():
            for model in endpoint.models:
                self._by_model.setdefault(model.name, []).append((endpoint, model))
        self._seen_models |= self._by_model.keys()
