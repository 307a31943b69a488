"""The engines that a request may go to, by deployment: the same objects while nothing changes, as pickers want."""

from collections.abc import Iterable, Set
from dataclasses import dataclass

from headwater_router.endpoints.deployments import Deployment
from headwater_router.endpoints.fleet import Fleet, Served
from headwater_router.picker.targets import Targets


@dataclass(frozen=True, slots=True, eq=False)
class Lineup:
    """Endpoints of one deployment, each with all its targets."""

    deployment: Deployment
    targets: Targets
    served: dict[str, Served]
    """By the id of the target."""

    def has_more_than(self, ids: Set[str]) -> bool:
        return not (self.served.keys() <= ids)


def lineups(fleet: Fleet, served: Iterable[Served]) -> list[Lineup]:
    by_deployment: dict[str, list[Served]] = {}
    for each in served:
        by_deployment.setdefault(each[0].spec.whose, []).append(each)
    return [
        Lineup(
            fleet.deployment(group[0][0]),
            Targets((target for endpoint, _ in group for target in endpoint.targets), group[0][0].spec.whose),
            {target.id: each for each in group for target in each[0].targets},
        )
        for group in by_deployment.values()
    ]


class Lineups:
    """Of each model those endpoints that take requests and are not ejected, made anew only when the fleet changes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._version = -1
        self._by_model: dict[str, list[Lineup]] = {}

    def of(self, model: str) -> list[Lineup]:
        if self._version != self._fleet.version:
            self._version = self._fleet.version
            self._by_model.clear()
        known = self._by_model.get(model)
        if known is None:
            good = (each for each in self._fleet.serving(model) if each[0].takes_requests and each[0].breaker.closed)
            known = self._by_model[model] = lineups(self._fleet, good)
        return known
