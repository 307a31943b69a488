"""What the objects of a cluster mean to the router: which models there are, and which pods serve them.

Pure: objects in, a `World` out, which depends on nothing but the objects that are there now, not on the order in which
they came and went. The watches that bring them are in `endpoints.kubernetes`.

- A ModelDeployment says which names are served and how traffic is to be spread. It is known before it has any pod.
- An EndpointSlice of its engine Service says at which address a pod listens, and whether it is ready.
- A Pod says which server runs in it, what its address is, and, before any slice does, that it is about to end.

Whoever may write EndpointSlices in some namespace could have the router connect to anything that it can reach. So an
address is believed only where the pod itself has it, which the cluster's nodes say.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from headwater import backends, names
from headwater.backends.base import Backend
from headwater.kubernetes import (
    EVENTS_PORT_NAME,
    HTTP_PORT_NAME,
    LABEL_BACKEND,
    LABEL_DEPLOYMENT,
    REPLAY_PORT_NAME,
    engine_service,
)
from headwater.names import Claimant, Claims
from headwater_router.endpoints.address import Address
from headwater_router.endpoints.endpoint import EndpointSpec, ServedModel
from headwater_router.endpoints.group import Share

log = structlog.get_logger(__name__)

Object = Mapping[str, Any]
"""As the API server sends it."""
Key = tuple[str, str]
"""Namespace and name."""

_LABEL_SERVICE: Final = "kubernetes.io/service-name"
_LONGEST_REASON: Final = 300
"""Characters of the operator's words that a client is told."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A ModelDeployment, as far as the router goes by it. Endpoints that flags or a file name are one without names."""

    namespace: str = ""
    name: str = ""
    names: tuple[str, ...] = ()
    """What clients may send as `model` to reach the model itself."""
    adapters: tuple[str, ...] = ()
    source: str = ""
    policy: str | None = None
    """None: the router's own."""
    objective: str | None = None
    """The same."""
    weight: int = 100
    wakes: bool = True
    """False where it was scaled to nothing by hand: no waiting request would bring it back."""
    failed: str = ""
    """Why it serves nothing, where the operator says that this will not pass by itself."""
    not_taken: tuple[tuple[str, str], ...] = ()
    """Adapters that no engine of it took, and why."""
    share: Share = Share.WEIGHT
    claimant: Claimant = field(default_factory=lambda: Claimant("", ""), compare=False)

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def in_vain(self, adapter: str) -> str:
        """Why a request for the model, or for this adapter of it, would wait in vain. Empty: it need not."""
        return self.failed or dict(self.not_taken).get(adapter, "")


@dataclass(frozen=True, slots=True)
class World:
    """All that the router wants to know of a cluster at one moment."""

    deployments: tuple[Deployment, ...] = ()
    """By namespace and name."""
    endpoints: Mapping[EndpointSpec, bool] = field(default_factory=dict)
    """All that are there, and whether they may get new requests."""
    claims: Claims = field(default_factory=lambda: names.claims(()))
    """Whose the names are."""


@dataclass(frozen=True, slots=True)
class _Pod:
    uid: str
    name: str
    backend: str
    address: str
    """Empty until it has one."""
    ending: bool


@dataclass(frozen=True, slots=True)
class _Slice:
    deployment: str
    family: str
    http_port: int
    events_port: int | None
    replay_port: int | None
    addresses: tuple[tuple[str, str, bool], ...]
    """Of each pod its UID, its address, and whether it is ready."""


class Objects:
    """The objects that the watches have told of. One that makes no sense counts as one that is not there."""

    def __init__(self) -> None:
        self._deployments: dict[Key, Deployment] = {}
        self._slices: dict[Key, _Slice] = {}
        self._pods: dict[Key, _Pod] = {}
        self._kinds: dict[str, tuple[dict[Key, Any], Callable[[Object], Any]]] = {
            "modeldeployments": (self._deployments, _read_deployment),
            "endpointslices": (self._slices, _read_slice),
            "pods": (self._pods, _read_pod),
        }

    def listed(self, kind: str, namespace: str | None, objects: Iterable[Object]) -> None:
        """These are all there are of a kind; `namespace` None: in all namespaces."""
        known, _ = self._kinds[kind]
        for key in [key for key in known if namespace in (None, key[0])]:
            del known[key]
        for each in objects:
            self.changed(kind, each)

    def changed(self, kind: str, each: Object) -> None:
        known, read = self._kinds[kind]
        try:
            value = read(each)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("object makes no sense", kind=kind, name=_key(each), reason=repr(error))
            value = None
        if value is None:
            known.pop(_key(each), None)
        else:
            known[_key(each)] = value

    def removed(self, kind: str, each: Object) -> None:
        self._kinds[kind][0].pop(_key(each), None)

    def world(self) -> World:
        # By namespace, too: a slice says nothing of the pods of others.
        pods = {(namespace, pod.uid): pod for (namespace, _), pod in self._pods.items()}
        endpoints: dict[str, tuple[EndpointSpec, bool]] = {}
        # A pod can be in several slices: of both address families, or of one that is being filled from another.
        ordered = sorted(self._slices.items(), key=lambda item: (item[1].family, item[0]))
        for (namespace, _), each in ordered:
            deployment = self._deployments.get((namespace, each.deployment))
            for uid, address, ready in each.addresses if deployment is not None else ():
                pod = pods.get((namespace, uid))
                if pod is None or deployment is None or address != pod.address:
                    continue
                spec, was_ready = endpoints.get(uid) or (_endpoint(each, address, pod, deployment), False)
                endpoints[uid] = spec, was_ready or (ready and not pod.ending)
        deployments = tuple(self._deployments[key] for key in sorted(self._deployments))
        claims = names.claims(deployment.claimant for deployment in deployments)
        return World(deployments, dict(endpoints.values()), claims)


def served_by(deployment: Deployment, backend: Backend, own: Sequence[ServedModel]) -> list[ServedModel]:
    """What an endpoint of the deployment serves, where `own` is what it says itself that it serves.

    The names are the deployment's, never the server's: some servers answer to one name of their own only, others list
    whatever lies in their cache. Adapters are those that the server has loaded; one that loads them when it starts need
    not list them. Prompts are hashed under the resource's name, so that this is the same for all its endpoints, and
    known before there is one.
    """
    bases = {model.name: model for model in own if not model.adapter and model.name not in deployment.adapters}
    own_name = _own_name(deployment, bases) or deployment.name
    served = []
    for name in deployment.names:
        known = name in bases or not bases or backend.answers_to_any_name
        said = bases.get(name) or bases.get(own_name) or _SILENT
        served.append(replace(said, name=name, base=deployment.name, upstream="" if known else own_name))
    loaded = {model.name: model for model in own if model.adapter or model.name in deployment.adapters}
    if backend.loads_adapters == "start":
        loaded |= {name: _SILENT for name in deployment.adapters if name not in loaded}
    for name, said in loaded.items():
        if name not in deployment.names:
            asked = backend.adapter_name(own_name, name)
            upstream = "" if asked == name else asked
            served.append(replace(said, name=name, base=deployment.name, adapter=name, upstream=upstream))
    return served


_SILENT: Final = ServedModel("", "", "")
"""Of a server that says nothing of it."""


def _own_name(deployment: Deployment, bases: Collection[str]) -> str | None:
    """Which of its names a server is asked by, if it does not know the one in the request. None: it names none."""
    source = deployment.source.partition("://")[2]
    known = [name for name in (*deployment.names, source) if name in bases]
    return next(iter([*known, *bases]), None)


def _key(each: Object) -> Key:
    return each["metadata"].get("namespace", ""), each["metadata"]["name"]


def _read_deployment(each: Object) -> Deployment | None:
    metadata, spec = each["metadata"], each["spec"]
    if metadata.get("deletionTimestamp"):
        return None
    model, routing = spec["model"], spec.get("routing") or {}
    return Deployment(
        *_key(each),
        names=(metadata["name"], *(model.get("aliases") or ())),
        adapters=tuple(adapter["name"] for adapter in spec.get("adapters") or ()),
        source=model["source"],
        policy=routing.get("policy"),
        objective=routing.get("objective"),
        weight=int(routing.get("weight", 100)),
        wakes=spec.get("replicas") != 0,
        failed=_failed(each),
        not_taken=_not_taken(each),
        share=Share.AUTO if routing.get("share") == Share.AUTO else Share.WEIGHT,
        claimant=names.read(each),
    )


def _failed(each: Object) -> str:
    status = _of_this_spec(each)
    if status.get("phase") != "Failed":
        return ""
    told = [it for it in status.get("conditions") or () if it["type"] == "Degraded"]
    return _cut(f"{told[0]['reason']}: {told[0]['message']}") if told else "it has failed"


def _not_taken(each: Object) -> tuple[tuple[str, str], ...]:
    """Whether an engine has it is for the engine to say: here is only what was tried and refused."""
    adapters = _of_this_spec(each).get("adapters") or ()
    return tuple((it["name"], _cut(it["message"])) for it in adapters if it.get("message") and not it.get("loaded"))


def _of_this_spec(each: Object) -> Mapping[str, Any]:
    """The status, unless it is about an earlier spec: what is wrong there may be mended."""
    status = each.get("status") or {}
    current = status.get("observedGeneration") == each["metadata"].get("generation")
    return status if current else {}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."


def _read_pod(each: Object) -> _Pod | None:
    """From a row of `endpoints.table`."""
    metadata = each["metadata"]
    backend = (metadata.get("labels") or {}).get(LABEL_BACKEND)
    try:
        backends.get(backend or "")
    except backends.UnknownBackendError as error:
        if backend is not None:  # A pod that fetches weights has none.
            log.warning("pod passed over", pod=metadata["name"], reason=str(error))
        return None
    ending = bool(metadata.get("deletionTimestamp"))
    return _Pod(metadata["uid"], metadata["name"], backend or "", _address(each["address"]), ending)


def _address(text: object) -> str:
    """As it is always written. Empty for what is none, or none that a pod can have."""
    try:
        address = ipaddress.ip_address(text) if isinstance(text, str) and "%" not in text else None
    except ValueError:
        return ""
    return str(address) if address is not None and may_be_a_pods(address) else ""


def may_be_a_pods(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Not so the addresses of this machine itself and of its link, where clouds answer with the node's credentials."""
    address = getattr(address, "ipv4_mapped", None) or address
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


def _read_slice(each: Object) -> _Slice | None:
    labels = each["metadata"].get("labels") or {}
    deployment = labels.get(LABEL_DEPLOYMENT)
    # The Service of a group's workers has slices, too, with pods that are no endpoints.
    if deployment is None or labels.get(_LABEL_SERVICE) != engine_service(deployment):
        return None
    ports = {port.get("name"): port.get("port") for port in each.get("ports") or ()}
    if not _is_port(ports.get(HTTP_PORT_NAME)) or each["addressType"] not in ("IPv4", "IPv6"):
        return None
    events_port, replay_port = ports.get(EVENTS_PORT_NAME), ports.get(REPLAY_PORT_NAME)
    addresses = []
    for endpoint in each.get("endpoints") or ():
        conditions = endpoint.get("conditions") or {}
        # To leave `ready` out means that it is.
        ready = conditions.get("ready") is not False and not conditions.get("terminating")
        target = endpoint.get("targetRef") or {}
        if target.get("kind") == "Pod" and endpoint["addresses"] and (address := _address(endpoint["addresses"][0])):
            addresses.append((target["uid"], address, ready))
    return _Slice(
        deployment,
        each["addressType"],
        ports[HTTP_PORT_NAME],
        events_port if _is_port(events_port) else None,
        replay_port if _is_port(replay_port) else None,
        tuple(addresses),
    )


def _is_port(value: object) -> bool:
    return type(value) is int and 1 <= value <= 65535


def _endpoint(each: _Slice, address: str, pod: _Pod, deployment: Deployment) -> EndpointSpec:
    host = f"[{address}]" if ":" in address else address
    events = f"tcp://{host}:{each.events_port}" if each.events_port is not None else None
    replay = f"tcp://{host}:{each.replay_port}" if each.replay_port is not None else None
    url = Address(False, address, each.http_port).url
    return EndpointSpec(url, pod.name, pod.backend, events, pod.uid, deployment.key, kv_replay=replay)
