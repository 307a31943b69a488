"""What differs between inference servers, and nothing else: a backend is one file beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.resource import ModelDeployment, ResourceError
from headwater.validation import found


class UnsupportedError(ResourceError):
    """The deployment wants something that its backend cannot do; the message names the field."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a number stands on a server's metrics page: in a sample's value, or in one of its labels."""

    metric: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class LoadMetrics:
    """What a server says of its load. Of each the first reading that is there counts: later ones are older names."""

    running: tuple[Reading, ...] = ()
    waiting: tuple[Reading, ...] = ()
    cache_usage: tuple[Reading, ...] = ()
    """0 to 1."""
    total_blocks: tuple[Reading, ...] = ()
    """KV blocks, used or not."""
    block_size: tuple[Reading, ...] = ()
    """Tokens in one of them."""


class Backend(ABC):
    name: ClassVar[str]
    """As in `spec.backend.type`."""
    health_path: ClassVar[str] = "/health"
    """Answers 200 while the server works."""
    ready_path: ClassVar[str] = "/health"
    """Answers 200 while the server takes requests: weights loaded, not draining."""
    metrics_path: ClassVar[str | None] = "/metrics"
    """A Prometheus page; None: there is none."""
    metrics: ClassVar[LoadMetrics] = LoadMetrics()
    reports_cached_tokens: ClassVar[bool] = True
    """Whether `usage.prompt_tokens_details.cached_tokens` is there, if started by `command`."""
    publishes_kv_events: ClassVar[bool] = True
    """Whether `command` knows what to do with an `events_port`."""
    refuses_unknown_fields: ClassVar[bool] = False
    """Whether a request with a field that the server does not know is answered with an error."""

    @abstractmethod
    def command(self, deployment: ModelDeployment, *, port: int, events_port: int | None = None) -> list[str]:
        """How to serve the deployment as one local process, on the loopback interface.

        `events_port`: where to publish KV events, as a ZMQ publisher that binds. Raises UnsupportedError.
        """

    def environment(self, deployment: ModelDeployment) -> Mapping[str, str]:
        """Environment variables for that process, on top of our own."""
        return deployment.spec.backend.env

    def unsupported(self, deployment: ModelDeployment, field: str, message: str) -> UnsupportedError:
        return UnsupportedError(f"{deployment.name}: {field}: the {self.name} backend {message}")

    def local_source(self, deployment: ModelDeployment, *prefixes: str) -> str:
        """The source of the weights, if a local process of this server can load what begins like this.

        A file:// is cut to its path. Raises UnsupportedError for others.
        """
        source = deployment.spec.model.source
        if not source.startswith(prefixes):
            allowed = ", ".join(prefixes)
            raise self.unsupported(deployment, "spec.model.source", f"loads {allowed} here; found {found(source)}")
        return source.removeprefix("file://")

    def refuse_all_but(self, deployment: ModelDeployment, **allowed: object) -> None:
        """Raise UnsupportedError for a field that asks for more than this server does.

        Fields are named as in `Spec`, with two underscores between the parts: `parallelism__tensor=1`.
        """
        for path, only in allowed.items():
            value: Any = deployment.spec
            field = "spec"
            for part in path.split("__"):
                field += f".{type(value).model_fields[part].alias}"
                value = getattr(value, part)
            if value != only:
                raise self.unsupported(deployment, field, f"knows only {found(only)} here; found {found(value)}")
