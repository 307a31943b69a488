"""All endpoints, what is known of them, and which of them serve which model."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from headwater.names import claims
from headwater.openai.models import ModelCard
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.catalogue import Catalogue, catalogue
from headwater_router.endpoints.catalogue import Served as Served
from headwater_router.endpoints.deployments import Deployment, World
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec, ServedModel
from headwater_router.endpoints.readiness import Readiness

log = structlog.get_logger(__name__)

_UNNAMED = Deployment()
"""What stands for endpoints of flags and files."""
_TOLD: Final = 3
"""Endpoints that a message tells of."""


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
        """Called when it may have changed which endpoints get requests, or when a model may be gone."""
        self.on_report: Callable[[Endpoint], None] = lambda endpoint: None
        """Called when an endpoint's gauges were read."""
        self.on_unreachable: Callable[[Endpoint], None] = lambda endpoint: None
        """Called when an endpoint has been silent for long: no answer of it that is still open will ever end."""
        self.deployments: dict[str, Deployment] = {}
        """By their keys."""
        self.version = 0
        """Another one whenever it may have changed which endpoints get requests."""
        self._make_breaker = make_breaker
        self._forget = forget
        self._endpoints: dict[EndpointSpec, Endpoint] = {}
        self._static: dict[str, Deployment] = {}
        """Deployments of flags and files, by their names."""
        self._claims = claims(())
        self._catalogue = Catalogue()
        self._seen: set[str] = set()
        """Names of endpoints that belong to no deployment, also of those that have gone."""
        self.models: Sequence[str] = ()
        """Of a deployment, or served by at least one endpoint while it was among us; in order."""

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
        groups = {spec.group.name: spec.group for spec in specs if spec.group.name}
        self._static = {
            name: Deployment(name=name, weight=group.weight, share=group.share) for name, group in groups.items()
        }
        accepting = dict.fromkeys(specs, True) | dict(world.endpoints if world else {})
        gone = [endpoint for spec, endpoint in self._endpoints.items() if spec not in accepting]
        new = [Endpoint(spec, self._make_breaker()) for spec in accepting if spec not in self._endpoints]
        for endpoint in gone:
            del self._endpoints[endpoint.spec]
            endpoint.become(Readiness.GONE)
            self._forget_targets(endpoint)
        for endpoint in new:
            self._endpoints[endpoint.spec] = endpoint
            endpoint.breaker.on_change = self.touch
        for spec, endpoint in self._endpoints.items():
            endpoint.accepting = accepting[spec]
        if world is not None:
            self.listed = True
            self.deployments = {deployment.key: deployment for deployment in world.deployments}
            self._claims = world.claims
        self._call_by_name()
        self._index_models()
        return new, gone

    def touch(self) -> None:
        self.version += 1
        self.on_change()

    def cordon(self, endpoint: Endpoint, cordoned: bool) -> None:
        """Whether it is to get no new requests, by somebody's word."""
        endpoint.cordoned = cordoned
        self.touch()

    # What probes find out, and the token path before them

    def mark_ready(self, endpoint: Endpoint, models: Sequence[ServedModel]) -> None:
        if endpoint.readiness is Readiness.GONE:
            return
        changed, was_ready = endpoint.models != models, endpoint.ready
        if not was_ready or changed:
            log.info("endpoint ready", endpoint=endpoint.name, models=[model.name for model in models[:_TOLD]])
        endpoint.become(Readiness.READY)
        endpoint.breaker.probed(time.monotonic())
        endpoint.reason, endpoint.missed, endpoint.met = "", 0, True
        self.touch()
        if changed:
            self._seen -= {model.name for model in endpoint.models} - {model.name for model in models}
            endpoint.models = models
            self._index_models()

    def mark_unready(self, endpoint: Endpoint, reason: str) -> None:
        """It is there, and says that it takes no requests, or nothing that makes sense."""
        if self._lose(endpoint, reason):
            endpoint.missed, endpoint.met = 0, True

    def mark_late(self, endpoint: Endpoint, reason: str) -> None:
        """It missed a probe. That alone takes it nothing."""
        if endpoint.readiness is Readiness.GONE:
            return
        if endpoint.ready:
            endpoint.become(Readiness.LATE)
        self._tell(endpoint, "endpoint late" if endpoint.ready else "endpoint not ready", reason)

    def mark_unreachable(self, endpoint: Endpoint, reason: str) -> None:
        """It has been silent for long. It may live, so what is known of its cache is kept."""
        if self._lose(endpoint, reason):
            self.on_unreachable(endpoint)

    def mark_dead(self, endpoint: Endpoint, reason: str) -> None:
        """Its host says that nobody listens: whoever comes back is a new process with an empty cache."""
        if self._lose(endpoint, reason):
            endpoint.missed = 0
            if endpoint.met:
                self.begin_new_life(endpoint)

    def begin_new_life(self, endpoint: Endpoint) -> None:
        self._forget_targets(endpoint)
        endpoint.new_life()
        self.touch()

    def found_ranks(self, endpoint: Endpoint, count: int, told_apart: int) -> None:
        """Its metrics tell of so many data-parallel engines, and of so many they tell each one's load. Where the server
        can be told which of these is to answer, each is a target from now on."""
        if endpoint.readiness is Readiness.GONE:
            return
        endpoint.ranks = count
        parts = told_apart if endpoint.backend.rank_header is not None else 1
        if parts != len(endpoint.targets):
            log.info("data-parallel engines found", endpoint=endpoint.name, ranks=count, told_apart=parts)
            self._forget_targets(endpoint)
            endpoint.divide(parts)
            self.touch()

    def _forget_targets(self, endpoint: Endpoint) -> None:
        for target in endpoint.targets:
            self._forget(target.id)

    def _lose(self, endpoint: Endpoint, reason: str) -> bool:
        """Returns whether it is still one of us."""
        if endpoint.readiness is Readiness.GONE:
            return False
        if endpoint.readiness is not Readiness.NEW:
            endpoint.become(Readiness.UNREADY)
            self.touch()
        self._tell(endpoint, "endpoint not ready", reason)
        return True

    def _tell(self, endpoint: Endpoint, event: str, reason: str) -> None:
        if reason != endpoint.reason:
            endpoint.reason = reason
            log.warning(event, endpoint=endpoint.name, reason=reason)

    # What the token path asks

    def serving(self, model: str) -> list[Served]:
        """Whether they are ready or not."""
        return self._catalogue.serving.get(model, [])

    def ready(self, model: str) -> bool:
        """Whether an endpoint takes requests for it, or could, were it not for its breaker."""
        return any(endpoint.takes_requests for endpoint, _ in self.serving(model))

    def why_not_ready(self, model: str) -> str:
        """Why no endpoint takes requests for it, in a sentence without an end. Empty: one does, or has no reason."""
        if failed := next(filter(None, (each.in_vain(self._adapter(model)) for each in self.promised(model))), ""):
            return failed.rstrip(".")
        serving = [endpoint for endpoint, _ in self.serving(model)]
        # One that was never ready may be the one that serves it.
        asked = serving or [each for each in self if not each.models and not each.spec.deployment]
        reasons = [f"{each.name}: {why}" for each in asked if (why := each.why_not())]
        if not asked and self.promised(model):
            return "it has no endpoint"
        more = f", and {len(reasons) - _TOLD} more" if len(reasons) > _TOLD else ""
        return "; ".join(reasons[:_TOLD]) + more

    def promised(self, model: str) -> list[Deployment]:
        """The deployments that are to serve it, whether they have an endpoint or not."""
        return self._catalogue.promised.get(model, [])

    def on_its_way(self, model: str) -> list[Deployment]:
        """Those of them that may get an endpoint for it before long, if it is asked for."""
        return [each for each in self.promised(model) if each.wakes and not each.in_vain(self._adapter(model))]

    def _adapter(self, model: str) -> str:
        identity = self.identity(model)
        return identity.adapter if identity is not None else ""

    def deployment(self, endpoint: Endpoint) -> Deployment:
        """Those of flags and files are told apart as they say."""
        known = self.deployments if endpoint.spec.deployment else self._static
        return known.get(endpoint.spec.whose, _UNNAMED)

    def identity(self, model: str) -> ServedModel | None:
        """What a name stands for. None: for nothing that is known here."""
        return self._catalogue.identities.get(model)

    def card(self, model: str, created: int) -> ModelCard | None:
        """What is known of a name, for a list of models. None: nothing. `created`: seconds since the epoch."""
        identity = self.identity(model)
        if identity is None:
            return None
        served = [each for _, each in self.serving(model)]
        lengths = [each.max_model_len for each in served if each.max_model_len is not None]
        owners = [each.owned_by for each in served if each.owned_by]
        return ModelCard(
            id=model,
            created=created,
            owned_by=owners[0] if owners else "headwater",
            root=next((each.root for each in served if each.root), None),
            parent=identity.base if identity.adapter else None,
            max_model_len=min(lengths, default=None),
            ready=self.ready(model),
        )

    def several(self, model: str) -> bool:
        """Whether more than one deployment serves it, or is to."""
        return model in self._catalogue.several

    @property
    def undiscovered(self) -> bool:
        """Whether a name that means nothing now may turn out to be served."""
        if not self.listed or not (self.kubernetes or self._endpoints):
            return True
        return any(not endpoint.models for spec, endpoint in self._endpoints.items() if not spec.deployment)

    def _call_by_name(self) -> None:
        """A pod by its name alone, unless there is another one in some namespace, or an endpoint that is called so."""
        count = Counter(spec.name for spec in self._endpoints)
        for spec, endpoint in self._endpoints.items():
            namespace = spec.deployment.partition("/")[0]
            endpoint.name = f"{namespace}/{spec.name}" if namespace and count[spec.name] > 1 else spec.name

    def _index_models(self) -> None:
        self._catalogue = catalogue(self._endpoints.values(), self.deployments, self._claims)
        self._seen |= self._catalogue.static
        self.models = sorted(self._seen | self._catalogue.listed)
        self.touch()
