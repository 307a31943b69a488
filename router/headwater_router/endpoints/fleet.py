"""All endpoints, and which of them serve which model."""

from collections.abc import Callable, Iterator, Sequence

import structlog

from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.deployments import Deployment, World, served_by
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec, ServedModel

log = structlog.get_logger(__name__)

Served = tuple[Endpoint, ServedModel]

_UNNAMED = Deployment()
"""What stands for endpoints of flags and files."""


class Fleet:
    """The token path reads it; discovery and probes write it."""

    def __init__(
        self, make_breaker: Callable[[], Breaker], forget: Callable[[str], None], *, kubernetes: bool = False
    ) -> None:
        """`forget` is told the id of each target that is no more. `kubernetes`: a `World` is still to come."""
        self.kubernetes = kubernetes
        self.listed = not kubernetes
        """Whether all ModelDeployments were heard of."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a model may have become ready, or may be gone."""
        self.deployments: dict[str, Deployment] = {}
        """By their keys."""
        self._make_breaker = make_breaker
        self._forget = forget
        self._endpoints: dict[EndpointSpec, Endpoint] = {}
        self._by_model: dict[str, list[Served]] = {}
        self.shared: set[str] = set()
        """Models that endpoints of more than one deployment serve."""
        self._promised: dict[str, list[Deployment]] = {}
        """Deployments by the names that their resources give them, whether there is an endpoint or not."""
        self._seen_models: set[str] = set()
        """Names of endpoints that belong to no deployment."""

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(list(self._endpoints.values()))

    def __len__(self) -> int:
        return len(self._endpoints)

    def replace(
        self, specs: Sequence[EndpointSpec], world: World | None = None
    ) -> tuple[list[Endpoint], list[Endpoint]]:
        """Make `specs` and `world` all there is; None: the cluster has not been listed yet.

        Returns the endpoints that came and those that went; running answers go on.
        """
        accepting = dict.fromkeys(specs, True) | dict(world.endpoints if world else {})
        gone = [endpoint for spec, endpoint in self._endpoints.items() if spec not in accepting]
        new = [Endpoint(spec, self._make_breaker()) for spec in accepting if spec not in self._endpoints]
        for endpoint in gone:
            del self._endpoints[endpoint.spec]
            endpoint.ready = False
            self._forget(endpoint.target.id)
        for endpoint in new:
            self._endpoints[endpoint.spec] = endpoint
        for spec, endpoint in self._endpoints.items():
            endpoint.accepting = accepting[spec]
        if world is not None:
            self.listed = True
            self.deployments = {deployment.key: deployment for deployment in world.deployments}
        self._index_models()
        return new, gone

    def mark_ready(self, endpoint: Endpoint, models: Sequence[ServedModel]) -> None:
        changed = endpoint.models != models
        if not endpoint.ready or changed:
            log.info("endpoint ready", endpoint=endpoint.name, models=[model.name for model in models])
        was_ready, endpoint.ready = endpoint.ready, True
        if changed:
            unloaded = {model.name for model in endpoint.models} - {model.name for model in models}
            endpoint.models = models
            self._seen_models -= unloaded
            self._index_models()
        elif not was_ready:
            self.on_change()

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

    def serving(self, model: str) -> list[Served]:
        """Whether they are ready or not."""
        return self._by_model.get(model, [])

    def ready(self, model: str) -> bool:
        """Whether an endpoint takes requests for it, or could, were it not for its breaker."""
        return any(endpoint.takes_requests for endpoint, _ in self.serving(model))

    def promised(self, model: str) -> list[Deployment]:
        """The deployments that are to serve it, whether they have an endpoint or not."""
        return self._promised.get(model, [])

    def deployment(self, endpoint: Endpoint) -> Deployment:
        return self.deployments.get(endpoint.spec.deployment, _UNNAMED)

    def identity(self, model: str) -> ServedModel | None:
        """What a name stands for. None: for nothing that is known here."""
        if promised := self._promised.get(model):
            first = promised[0]
            return ServedModel(model, first.name, model if model in first.adapters else "")
        serving = self._by_model.get(model)
        return serving[0][1] if serving else None

    @property
    def models(self) -> list[str]:
        """Of a deployment, or served by at least one endpoint while it was among us."""
        return sorted(self._seen_models | self._promised.keys() | self._by_model.keys())

    @property
    def undiscovered(self) -> bool:
        """Whether a name that means nothing now may turn out to be served."""
        if not self.listed or not (self.kubernetes or self._endpoints):
            return True
        return any(not endpoint.models for spec, endpoint in self._endpoints.items() if not spec.deployment)

    def _index_models(self) -> None:
        self._by_model = {}
        for endpoint in self._endpoints.values():
            models = endpoint.models
            if endpoint.spec.deployment:
                models = served_by(self.deployment(endpoint), endpoint.backend, models)
            else:
                self._seen_models |= {model.name for model in models}
            for model in models:
                self._by_model.setdefault(model.name, []).append((endpoint, model))
        self.shared = {
            name
            for name, serving in self._by_model.items()
            if len({endpoint.spec.deployment for endpoint, _ in serving}) > 1
        }
        self._promised = {}
        for deployment in self.deployments.values():
            for name in (*deployment.names, *deployment.adapters):
                self._promised.setdefault(name, []).append(deployment)
        self.on_change()
