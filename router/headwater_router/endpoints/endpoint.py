"""One engine as the router knows it."""

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headwater import backends
from headwater.backends.base import Backend
from headwater_router.endpoints.address import EndpointError as EndpointError
from headwater_router.endpoints.address import read_events, read_url, refuse_credentials, shown
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.group import UNNAMED, Group
from headwater_router.endpoints.key import ApiKey
from headwater_router.endpoints.readiness import Readiness
from headwater_router.endpoints.tls import trust
from headwater_router.picker.base import Target

_LONGEST_NAME: Final = 253
_LONGEST_FILE: Final = 4096
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_SETTINGS: Final = (
    "url", "name", "backend", "model", "kv_events", "kv_replay", "deployment", "weight", "share", "api_key_env",
    "api_key_file",
)  # fmt: skip
_FIRST_SETTING: Final = re.compile(f",(?:{'|'.join(_SETTINGS)})=")


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Where an engine is, as flags, a file or Kubernetes say it. Two equal specs are the same endpoint."""

    url: str
    """http://HOST[:PORT][/PATH], or https://; always written in the same way."""
    name: str
    """What people call it, who may call two by the same name: it identifies nothing."""
    backend: str = "headwater"
    kv_events: str | None = None
    """ZMQ address of its KV events."""
    uid: str = ""
    """Of its pod: a new pod is a new endpoint, also at the address of an old one. Empty where there is no pod."""
    deployment: str = ""
    """NAMESPACE/NAME of the ModelDeployment that it belongs to. Empty where flags or a file name it."""
    api_key_env: str = ""
    """Variable with the key that it wants to see. The key itself is never a part of the spec."""
    api_key_file: str = ""
    """Or a file with it."""
    kv_replay: str | None = None
    """ZMQ address at which it repeats KV events."""
    group: Group = UNNAMED
    """Its deployment, where flags or a file name it."""
    model: str = ""
    """What clients call its model, where it calls that by another name, such as a path. Empty: by its own."""

    @property
    def whose(self) -> str:
        """Key of its deployment."""
        return self.deployment or self.group.name

    @classmethod
    def of(cls, fields: Mapping[object, object]) -> "EndpointSpec":
        """Of settings that somebody wrote. Raises EndpointError, also for a key that cannot be read."""
        settings = _texts(fields)
        address = read_url(settings.get("url", ""))
        name = settings.get("name") or address.authority + address.path
        _check_name(address.url, "name", name)
        model = settings.get("model", "")
        _check_name(address.url, "model", model)
        backend = settings.get("backend", "headwater")
        try:
            backends.get(backend)
        except backends.UnknownBackendError:
            allowed = ", ".join(backends.names())
            raise EndpointError(f"endpoint {address.url}: no backend {_cut(backend)}; there are: {allowed}") from None
        events = read_events("kv_events", settings["kv_events"]) if settings.get("kv_events") else None
        replay = read_events("kv_replay", settings["kv_replay"]) if settings.get("kv_replay") else None
        variable, file = settings.get("api_key_env", ""), settings.get("api_key_file", "")
        _check_key(address.url, variable, file)
        return cls(
            address.url, name, backend, events, api_key_env=variable, api_key_file=file, kv_replay=replay,
            group=Group.of(address.url, settings), model=model,
        )  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> "EndpointSpec":
        """From the flag's `URL[,name=value...]`. Raises EndpointError."""
        refuse_credentials(_FIRST_SETTING.split(text, maxsplit=1)[0])  # before a password with a comma is taken apart
        url, *settings = text.split(",")
        fields: dict[object, object] = {"url": url}
        for setting in settings:
            name, separator, value = setting.partition("=")
            if not separator:
                raise EndpointError(f"endpoint {shown(url)}: settings are name=value, found {shown(setting)}")
            fields[name.strip()] = value
        return cls.of(fields)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that an endpoint answers to."""

    name: str
    base: str
    """The name that stands for the same weights: aliases share a cache, so they are hashed alike."""
    adapter: str
    """The name again, where it is a LoRA adapter of `base`; else empty."""
    upstream: str = ""
    """What the endpoint itself calls it, where that is something else."""
    root: str = ""
    """Where the weights come from, as the endpoint says. Empty: it says nothing."""
    owned_by: str = ""
    max_model_len: int | None = None
    """Tokens of one request, prompt and output together, as the endpoint says."""


def _never() -> float:
    return float("-inf")


@dataclass(slots=True, eq=False)
class Endpoint:
    """What is known of an engine now."""

    spec: EndpointSpec
    breaker: Breaker
    name: str = ""
    """As in its spec, or with its namespace where another endpoint has that name, too."""
    host: str = ""
    port: int = 80
    tls: ssl.SSLContext | None = None
    path: bytes = b""
    """What comes before the path of each request."""
    authority: bytes = b""
    """For the header `host`."""
    key: ApiKey = field(default_factory=lambda: ApiKey("", ""), repr=False)
    targets: tuple[Target, ...] = ()
    """What policies choose among: one of each data-parallel engine where requests can be sent to it, else one of all.
    New ones for each life of the engine: a restarted one has an empty cache. Written by `divide` alone."""
    target_ids: frozenset[str] = frozenset()
    """Of these."""
    life: str = ""
    """Unique for each life."""
    readiness: Readiness = Readiness.NEW
    """What its probes say. Written by `become` alone."""
    ready: bool = False
    """Whether that lets it take requests; a field of its own because every request asks."""
    reason: str = "it was not looked at yet"
    """Why it is not ready, or was late: for people. Empty while nothing is wrong."""
    missed: int = 0
    """Probes in a row that got no answer."""
    said_ready: float = float("-inf")
    """When it last said itself that it takes requests, in the loop's time."""
    met: bool = False
    """Whether it has answered anything in this life."""
    accepting: bool = True
    """Whether Kubernetes lets new requests go there: not while it starts or terminates."""
    cordoned: bool = False
    """Whether somebody keeps it from new requests, through the admin API."""
    models: Sequence[ServedModel] = ()
    """Empty until it was asked for them."""
    ranks: int = 1
    """Data-parallel engines behind its one address, each with a cache and KV events of its own."""
    lives: int = 0
    _divisions: int = 0
    """Of this life."""
    _left: list[Target] = field(default_factory=list)
    """Targets of this life to which nothing more is sent, while something is on its way."""
    process_start: float | None = None
    """Of the engine, seconds since the epoch, where it says so."""
    last_heard: Callable[[], float] = _never
    """When a byte of an answer came last, in the loop's time. Whoever reads the answers puts it here."""

    def __post_init__(self) -> None:
        """Raises EndpointError for a spec whose URL is none."""
        address = read_url(self.spec.url)
        self.name = self.spec.name
        self.host, self.port = address.host, address.port
        self.tls = trust() if address.tls else None
        self.path, self.authority = address.path.encode(), address.authority.encode()
        self.key = ApiKey(self.spec.api_key_env, self.spec.api_key_file)
        self.new_life()

    def become(self, readiness: Readiness) -> None:
        """Raises ValueError for a step that there is not."""
        self.readiness = self.readiness.to(readiness)
        self.ready = readiness.takes_requests

    def new_life(self) -> None:
        self.lives += 1
        self.life = f"{self.id}#{self.lives}"
        self._divisions = 0
        self._left = []
        self.targets = ()
        self.divide(1)
        self.process_start = None
        self.ranks = 1
        self.met = False

    def divide(self, parts: int) -> None:
        """Let as many targets stand for it from now on; one stands for all that is there. What is on its way to those
        before goes on, and counts in `in_flight`."""
        self._left = [target for target in (*self._left, *self.targets) if target.load.in_flight]
        if parts == 1:
            self.targets = (Target(f"{self.life}.{self._divisions}"),)
        else:
            names = (f"{self.life}.{self._divisions}.{rank}" for rank in range(parts))
            self.targets = tuple(Target(name, rank=rank) for rank, name in enumerate(names))
        self._divisions += 1
        self.target_ids = frozenset(target.id for target in self.targets)

    @property
    def in_flight(self) -> int:
        """Requests of ours in this life whose answers have not ended."""
        return sum(target.load.in_flight for target in (*self.targets, *self._left))

    @property
    def id(self) -> str:
        """Unique, and the same through all its lives."""
        return self.spec.uid or self.spec.url

    @property
    def incarnation(self) -> str:
        """What all routers call this life of the engine: its pod, or else its URL, and when its process started."""
        return f"{self.id}@{self.process_start or ''}"

    @property
    def backend(self) -> Backend:
        return backends.get(self.spec.backend)

    @property
    def takes_requests(self) -> bool:
        return self.ready and self.accepting and not self.cordoned

    def why_not(self) -> str:
        """Why it gets no requests. Empty: it does, or only its breaker keeps it from them."""
        if not self.ready:
            return self.reason
        if self.cordoned:
            return "it is cordoned"
        return "" if self.accepting else "its pod is not ready, or ends"


def _check_name(url: str, setting: str, name: str) -> None:
    """Raises EndpointError."""
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise EndpointError(
            f"endpoint {url}: {setting} must be at most {_LONGEST_NAME} printable characters, found {_cut(name)}"
        )


def _texts(fields: Mapping[object, object]) -> dict[str, str]:
    """The settings that are given. Raises EndpointError."""
    settings: dict[str, str] = {}
    for name, value in fields.items():
        if not isinstance(name, str) or name not in _SETTINGS:
            raise EndpointError(f"endpoint: unknown setting {_cut(name)}; allowed are {', '.join(_SETTINGS)}")
        if name == "weight" and type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            raise EndpointError(f"endpoint: {name} must be text, found {_cut(value)}")
        settings[name] = value
    return settings


def _check_key(url: str, variable: str, file: str) -> None:
    """Raises EndpointError."""
    if variable and file:
        raise EndpointError(f"endpoint {url}: api_key_env and api_key_file cannot stand beside one another")
    if variable and not _VARIABLE.fullmatch(variable):
        raise EndpointError(f"endpoint {url}: api_key_env must be the name of a variable")
    if len(file) > _LONGEST_FILE or not file.isprintable():
        raise EndpointError(f"endpoint {url}: api_key_file must be a path")
    try:
        ApiKey(variable, file).read()
    except EndpointError as error:
        raise EndpointError(f"endpoint {url}: {error}") from None


def _cut(value: object) -> str:
    """A wrong value, in a length that fits a message, whatever it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"{value[:80]!r}..."
    return "nothing" if value is None else f"a {type(value).__name__}"
