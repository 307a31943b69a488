"""What each name means: which endpoints answer to it, and for which ModelDeployment.

- Endpoints of flags and files come first. Whoever runs the router named them; what they serve, no ModelDeployment can
  take over.
- Otherwise a name is served by those whose it is (`headwater.names`), and by those that these share it with.
- `NAMESPACE/NAME` always leads to that namespace's ModelDeployments.
- An adapter that was loaded by hand, so that no resource names it, is nobody's. Where engines of several namespaces say
  that they have it, requests for it would go to any of them, so they go to none; `NAMESPACE/NAME` still works.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headwater.names import Claims, qualified
from headwater_router.endpoints.deployments import Deployment, served_by
from headwater_router.endpoints.endpoint import Endpoint, ServedModel

Served = tuple[Endpoint, ServedModel]


@dataclass(slots=True)
class Catalogue:
    serving: dict[str, list[Served]] = field(default_factory=dict)
    """Endpoints by name, ready or not."""
    promised: dict[str, list[Deployment]] = field(default_factory=dict)
    """Deployments by the names that their resources give them, whether there is an endpoint or not."""
    identities: dict[str, ServedModel] = field(default_factory=dict)
    """What a name stands for."""
    several: set[str] = field(default_factory=set)
    """Names that more than one deployment serves, or is to."""
    static: set[str] = field(default_factory=set)
    """Names of endpoints that belong to no deployment."""
    listed: set[str] = field(default_factory=set)
    """Names to tell people of: each model once, by its long name only where its short one is another's."""


def catalogue(endpoints: Collection[Endpoint], deployments: Mapping[str, Deployment], claims: Claims) -> Catalogue:
    made = Catalogue()
    for endpoint in endpoints:
        if not endpoint.spec.deployment:
            for model in _named(endpoint):
                _add(made, model.name, endpoint, model)
    made.static = set(made.serving)
    offers = [
        (endpoint, deployment, served_by(deployment, endpoint.backend, endpoint.models))
        for endpoint in endpoints
        if (deployment := deployments.get(endpoint.spec.deployment)) is not None
    ]
    contested = _contested([(deployment, model) for _, deployment, models in offers for model in models], claims)
    for endpoint, deployment, models in offers:
        for model in models:
            long = qualified(deployment.namespace, model.name)
            short = _may(deployment, model.name, claims, made) and model.name not in contested
            if short:
                _add(made, model.name, endpoint, model)
            if long not in made.static:
                _add(made, long, endpoint, replace(model, name=long, upstream=model.upstream or model.name))
            made.listed.add(model.name if short else long)
    for deployment in deployments.values():
        _promise(made, deployment, claims)
    made.listed |= made.static
    for name, serving in made.serving.items():
        made.identities.setdefault(name, serving[0][1])
        if len({endpoint.spec.whose for endpoint, _ in serving}) > 1:
            made.several.add(name)
    made.several |= {name for name, promised in made.promised.items() if len(promised) > 1}
    return made


def _named(endpoint: Endpoint) -> Sequence[ServedModel]:
    """What one of no deployment serves: by its own names, or by the one that it was given."""
    if not (name := endpoint.spec.model):
        return endpoint.models
    return served_by(Deployment(name=name, names=(name,)), endpoint.backend, endpoint.models)


def _add(made: Catalogue, name: str, endpoint: Endpoint, model: ServedModel) -> None:
    serving = made.serving.setdefault(name, [])
    # The endpoints come one after the other: one that has a name twice had it just now.
    if not serving or serving[-1][0] is not endpoint:
        serving.append((endpoint, model))


def _may(deployment: Deployment, name: str, claims: Claims, made: Catalogue) -> bool:
    return name not in made.static and claims.serves(deployment.namespace, name)


def _contested(offers: list[tuple[Deployment, ServedModel]], claims: Claims) -> set[str]:
    """Names that no resource asks for, in more than one namespace."""
    where: dict[str, str] = {}
    contested = set()
    for deployment, model in offers:
        first = where.setdefault(model.name, deployment.namespace)
        if first != deployment.namespace and model.name not in claims.owners:
            contested.add(model.name)
    return contested


def _promise(made: Catalogue, deployment: Deployment, claims: Claims) -> None:
    for name in (*deployment.names, *deployment.adapters):
        adapter = name if name in deployment.adapters else ""
        long = qualified(deployment.namespace, name)
        short = _may(deployment, name, claims, made)
        for each in [each for each, its in ((name, short), (long, long not in made.static)) if its]:
            promised = made.promised.setdefault(each, [])
            if deployment not in promised:
                promised.append(deployment)
            made.identities.setdefault(each, ServedModel(each, deployment.name, adapter))
        made.listed.add(name if short else long)
