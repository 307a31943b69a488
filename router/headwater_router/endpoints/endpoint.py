"""One engine as the router knows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from headwater import backends
from headwater.backends.base import Backend
from headwater_router.endpoints.breaker import Breaker
from headwater_router.picker.base import Target


class EndpointError(ValueError):
    """An endpoint is not described right; the message says what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Where an engine is, as flags, a file or Kubernetes say it. Two equal specs are the same endpoint."""

    url: str
    """http://HOST:PORT, without a path."""
    name: str
    backend: str = "headwater"
    kv_events: str | None = None
    """ZMQ address of its KV events."""
    uid: str = ""
    """Of its pod: a new pod is a new endpoint, also at the address of an old one. Empty where there is no pod."""
    deployment: str = ""
    """NAMESPACE/NAME of the ModelDeployment that it belongs to. Empty where flags or a file name it."""

    @classmethod
    def of(cls, fields: dict[str, object]) -> "EndpointSpec":
        """Raises EndpointError."""
        unknown = fields.keys() - {"url", "name", "backend", "kv_events"}
        if unknown:
            raise EndpointError(
                f"endpoint: unknown setting {sorted(unknown)[0]!r}; allowed are url, name, backend, kv_events"
            )
        not_text = next((name for name, value in fields.items() if not isinstance(value, str)), None)
        if not_text is not None:
            raise EndpointError(f"endpoint: {not_text} must be text, found {fields[not_text]!r}")
        url = str(fields.get("url", "")).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path or parts.query:
            raise EndpointError(f"endpoint: url must be http://HOST:PORT, found {url!r}")
        backend = str(fields.get("backend", "headwater"))
        try:
            backends.get(backend)
        except backends.UnknownBackendError as error:
            raise EndpointError(f"endpoint {url}: {error}") from None
        events = fields.get("kv_events")
        return cls(url, str(fields.get("name") or parts.netloc), backend, str(events) if events else None)

    @classmethod
    def parse(cls, text: str) -> "EndpointSpec":
        """From the flag's `URL[,name=value...]`. Raises EndpointError."""
        url, *settings = text.split(",")
        fields: dict[str, object] = {"url": url}
        for setting in settings:
            name, separator, value = setting.partition("=")
            if not separator:
                raise EndpointError(f"endpoint {url}: settings are name=value, found {setting!r}")
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


@dataclass(slots=True, eq=False)
class Endpoint:
    """What is known of an engine now."""

    spec: EndpointSpec
    breaker: Breaker
    host: str = ""
    port: int = 80
    target: Target = field(default_factory=lambda: Target(""))
    """A new one for each life of the engine: a restarted one has an empty cache."""
    ready: bool = False
    """What its probe says."""
    accepting: bool = True
    """Whether Kubernetes lets new requests go there: not while it starts or terminates."""
    models: Sequence[ServedModel] = ()
    """Empty until it was asked for them."""
    lives: int = 0
    process_start: float | None = None
    """Of the engine, seconds since the epoch, where it says so."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.spec.url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.new_life()

    def new_life(self) -> None:
        self.lives += 1
        self.target = Target(f"{self.spec.uid or self.spec.name}#{self.lives}")
        self.process_start = None

    @property
    def incarnation(self) -> str:
        """What all routers call this life of the engine: its pod, or else its URL, and when its process started."""
        return f"{self.spec.uid or self.spec.url}@{self.process_start or ''}"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def backend(self) -> Backend:
        return backends.get(self.spec.backend)

    @property
    def takes_requests(self) -> bool:
        return self.ready and self.accepting

    def available(self, now: float) -> bool:
        return self.ready and self.accepting and self.breaker.allows(now)
