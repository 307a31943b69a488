"""What the gateway knows of the load: read from the metrics of every router, and added up.

Engines cannot say it: at zero replicas there is none, and the requests that should wake them wait in the routers. Each
router sees only what it was sent itself, so a sum is right only if all of them answered; every number says whether.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from headwater.kubernetes import ADMIN_PORT_NAME, HTTP_PORT_NAME, LOAD_METRICS
from headwater_operator.asking import EndlessError, ask
from headwater_operator.cluster.kinds import Object, name_of

Deployment = tuple[str, str]
"""Namespace and name of a ModelDeployment."""

_IN_FLIGHT: Final = "headwater_router_deployment_in_flight"
_HELD: Final = "headwater_router_deployment_held"
_READY: Final = "headwater_router_deployment_ready_endpoints"
_POD: Final = "headwater_router_endpoint_in_flight"
_SHARE: Final = "headwater_router_deployment_share"
_NEEDED: Final = tuple(LOAD_METRICS)
_PATH: Final = f"/metrics?{httpx.QueryParams([('name[]', name) for name in sorted(LOAD_METRICS)])}"
"""A router that is older tells all of its metrics, which are thousands of lines more."""

_LARGEST_PAGE: Final = 16 * 1024 * 1024
"""Bytes; a thousand endpoints need less than one tenth of that."""
_REMEMBERED: Final = 16
"""Pages, without what is not needed of them: as many as there are routers, mostly."""
_SERIES: Final = 32_768
"""Series that are remembered."""
_TIMEOUT: Final = 2.0
"""Seconds for all of them together."""
_BUSY: Final = 2**31 - 1
"""The highest cost there is: Kubernetes deletes such a pod last."""


Shares = Mapping[tuple[str, str], float]
"""Of a deployment, by model and class of requests: 0 to 1."""


@dataclass(frozen=True, slots=True)
class DeploymentLoad:
    in_flight: int = 0
    """Requests sent to its endpoints, not ended."""
    held: int = 0
    """Requests that wait for an endpoint."""
    ready_endpoints: int = 0
    """Those that every router knows to be ready."""
    complete: bool = True
    """Whether every router reported it. If not, the counts are the least that there is."""


@dataclass(frozen=True, slots=True)
class GatewayReport:
    complete: bool = False
    """Whether every router answered, and there is one."""
    deployments: Mapping[Deployment, DeploymentLoad] = field(default_factory=dict)
    pods: Mapping[str, int] = field(default_factory=dict)
    """Requests in flight by pod; only of pods that every router reported."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Why a router did not answer, by its URL."""
    shares: Mapping[Deployment, Shares] = field(default_factory=dict)
    """The mean over the routers that have found any."""


# Which routers there are


def router_urls(slices: Iterable[Object]) -> list[str]:
    """Base URLs of the pods behind a Service, from its EndpointSlices.

    A router that drains still has streams in flight, so it counts for as long as it serves. In a dual-stack cluster a
    pod is in two slices, and must not be counted twice.
    """
    urls: dict[str, str] = {}
    for each in sorted(slices, key=lambda each: (str(each.get("addressType")), name_of(each))):
        port = _port(each)
        for endpoint in each.get("endpoints") or []:
            address = endpoint["addresses"][0]
            if port is None or (endpoint.get("conditions") or {}).get("serving") is False:
                continue
            pod = (endpoint.get("targetRef") or {}).get("name") or address
            urls.setdefault(pod, f"http://{_host(address)}:{port}")
    return sorted(urls.values())


def _port(endpoint_slice: Object) -> int | None:
    """A router that has no admin port tells its metrics where it serves."""
    ports = {port.get("name"): port["port"] for port in endpoint_slice.get("ports") or []}
    only = next(iter(ports.values())) if len(ports) == 1 else None
    return next((ports[name] for name in (ADMIN_PORT_NAME, HTTP_PORT_NAME) if name in ports), only)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# What they say


async def ask_gateways(client: httpx.AsyncClient, urls: Sequence[str], seconds: float = _TIMEOUT) -> GatewayReport:
    """Ask all routers at once. Takes `seconds` at most, and never raises."""
    answers = await asyncio.gather(*(_read(client, url, seconds) for url in urls))
    pages = [answer for answer in answers if isinstance(answer, RouterPage)]
    failures = {url: answer for url, answer in zip(urls, answers, strict=True) if isinstance(answer, str)}
    return combine(pages, failures) if failures else _combined(tuple(pages))


@lru_cache(maxsize=1)
def _combined(pages: tuple["RouterPage", ...]) -> GatewayReport:
    """Where all say what they said before, the report is the one that it was."""
    return combine(pages)


async def _read(client: httpx.AsyncClient, url: str, seconds: float) -> "RouterPage | str":
    """What one router says, or why it does not."""
    try:
        told = await ask(client, f"{url}{_PATH}", seconds=seconds, most=_LARGEST_PAGE)
        return parse(told.body.decode()) if told.is_success else f"answered {told.status}"
    except EndlessError:
        return "its metrics page has no end"
    except (TimeoutError, httpx.TimeoutException):
        return f"no answer within {seconds:g} s"
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    except (ValueError, ArithmeticError) as error:
        return f"not a metrics page: {error}"


@dataclass(frozen=True, slots=True, eq=False)
class RouterPage:
    """What one router says."""

    deployments: Mapping[Deployment, DeploymentLoad]
    pods: Mapping[str, int]
    shares: Mapping[Deployment, Shares] = field(default_factory=dict)


def parse(page: str) -> RouterPage:
    """Raises ValueError for what is not Prometheus's text format."""
    return _parse("\n".join(line for line in page.splitlines() if line.startswith(_NEEDED)))


@lru_cache(maxsize=_REMEMBERED)
def _parse(lines: str) -> RouterPage:
    """At rest routers say what they said before, and get the same object."""
    values: defaultdict[Deployment, dict[str, int]] = defaultdict(dict)
    pods: dict[str, int] = {}
    shares: defaultdict[Deployment, dict[tuple[str, str], float]] = defaultdict(dict)
    for line in lines.splitlines():
        series, _, text = line.rpartition(" ")
        name, what, deployment = _read_series(series)
        value = float(text)
        if name == _POD:
            pods[what[0]] = int(value)
        elif name == _SHARE:
            shares[deployment][what] = _share(value)
        elif name in LOAD_METRICS:
            values[deployment][name] = int(value)
    # A router that knows a deployment exports all three.
    deployments = {
        deployment: DeploymentLoad(each[_IN_FLIGHT], each[_HELD], each[_READY])
        for deployment, each in values.items()
        if len(each) == 3
    }
    return RouterPage(deployments, pods, shares)


@lru_cache(maxsize=_SERIES)
def _read_series(text: str) -> tuple[str, tuple[str, str], Deployment]:
    """Its name, what of the deployment it is about, and the deployment: the same ever again, with other values.

    To read a thousand deployments' series takes a sixth of a second.
    """
    for family in text_string_to_metric_families(f"{text} 0\n"):
        for sample in family.samples:
            labels = sample.labels
            deployment = labels.get("namespace", ""), labels.get("deployment", "")
            if sample.name == _POD:
                return sample.name, (labels.get("endpoint", ""), ""), deployment
            return sample.name, (labels.get("model", ""), labels.get("class", "")), deployment
    raise ValueError(f"no series: {text}")


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a share of {value}")
    return value


def combine(pages: Sequence[RouterPage], failures: Mapping[str, str] | None = None) -> GatewayReport:
    """Add up what the routers say that answered."""
    failures = failures or {}
    complete = bool(pages) and not failures
    deployments = {}
    for deployment in {name for page in pages for name in page.deployments}:
        loads = [page.deployments[deployment] for page in pages if deployment in page.deployments]
        deployments[deployment] = DeploymentLoad(
            in_flight=sum(load.in_flight for load in loads),
            held=sum(load.held for load in loads),
            ready_endpoints=min(load.ready_endpoints for load in loads),
            complete=complete and len(loads) == len(pages),
        )
    known = set.intersection(*(set(page.pods) for page in pages)) if complete else set()
    pods = {pod: sum(page.pods[pod] for page in pages) for pod in known}
    return GatewayReport(complete, deployments, pods, failures, _mean_shares(pages))


def _mean_shares(pages: Sequence[RouterPage]) -> dict[Deployment, Shares]:
    said: defaultdict[Deployment, defaultdict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for page in pages:
        for deployment, shares in page.shares.items():
            for what, share in shares.items():
                said[deployment][what].append(share)
    return {deployment: {what: fmean(values) for what, values in shares.items()} for deployment, shares in said.items()}


# Which pods may go first


def deletion_costs(pods: Iterable[Object], in_flight: Mapping[str, int]) -> dict[str, int]:
    """Values of controller.kubernetes.io/pod-deletion-cost by pod, the first to go the lowest.

    Pods that take no requests, then the idlest. What a pod has to do that no report names is not known, so it stays.
    """
    return {name_of(pod): in_flight.get(name_of(pod), _BUSY) if _ready(pod) else -1 for pod in pods}


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
