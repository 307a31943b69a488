"""`headwater route --check`: what a router with these flags would serve, or everything that is wrong with them.

It reads all files that a router reads at its start, and neither opens a port nor asks anybody.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from headwater_router.admission.key_file import Key, read_keys
from headwater_router.config import RouterSettings, contradictions
from headwater_router.endpoints.discovery import read_endpoints
from headwater_router.endpoints.endpoint import EndpointSpec
from headwater_router.gateway.access_log import OFF, STDOUT
from headwater_router.index.tokenizer import named_tokenizer

_MOST_LISTED: Final = 20
_WIDTH: Final = 12

Lines = Iterator[str]


def run(settings: RouterSettings) -> int:
    """Says it on stdout, what is wrong on stderr. Returns the exit status: 0, or 2 where anything is wrong."""
    wrong = [*contradictions(settings)]
    for name, part in _PARTS:
        try:
            for line in part(settings):
                print(f"{name:{_WIDTH}}{line}")
        except (OSError, ValueError) as error:
            wrong.append(str(error))
    for sentence in wrong:
        print(f"headwater route: {sentence}", file=sys.stderr)
    return 2 if wrong else 0


def _clients(settings: RouterSettings) -> Lines:
    yield _url(settings.host, settings.port)


def _keys(settings: RouterSettings) -> Lines:
    if settings.api_keys is None:
        yield "none: everybody who reaches the port may ask"
    else:
        with _blamed("--api-keys"):
            keys = read_keys(settings.api_keys)
        yield from _listed([_key_text(key) for key in keys])


def _admin(settings: RouterSettings) -> Lines:
    if settings.admin_port is None:
        yield "no API; /metrics, /ready and /version are on the clients' port"
        return
    if settings.admin_keys is not None:
        with _blamed("--admin-keys"):
            keys = read_keys(settings.admin_keys)
        who = f"for keys {', '.join(_listed([key.name for key in keys]))}"
    elif _is_loopback(settings.admin_host):
        who = "for all programs of this machine"
    else:
        who = "closed: it needs --admin-keys, or a loopback address"
    yield f"{_url(settings.admin_host, settings.admin_port)}; the API is {who}"


def _endpoints(settings: RouterSettings) -> Lines:
    specs = [EndpointSpec.parse(text) for text in settings.endpoint]
    if settings.endpoints_file is not None:
        specs += read_endpoints(settings.endpoints_file)
    yield from _listed([_endpoint_text(spec) for spec in specs])
    if settings.kubernetes:
        yield f"those of the cluster, in {', '.join(settings.kubernetes_namespaces) or 'all namespaces'}"


def _models(settings: RouterSettings) -> Lines:
    yield "whatever the endpoints say that they serve"


def _policy(settings: RouterSettings) -> Lines:
    yield f"{settings.policy} for {settings.objective}" if settings.policy == "prefix" else settings.policy


def _tokenizers(settings: RouterSettings) -> Lines:
    for setting in settings.tokenizer:
        with _blamed("--tokenizer"):
            model, _ = named_tokenizer(setting)
        yield model


def _replicas(settings: RouterSettings) -> Lines:
    if settings.redis_url is None:
        return
    from headwater_router.replicas.sharing import address_of

    with _blamed("--redis-url"):
        address = address_of(settings.redis_url)
    yield f"share through Redis at {address}"


def _access_log(settings: RouterSettings) -> Lines:
    if settings.access_log in (OFF, STDOUT):
        yield "off" if settings.access_log == OFF else "stdout"
        return
    path = Path(settings.access_log)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--access-log: {path} cannot be written")
    yield str(path)


_PARTS: Final[tuple[tuple[str, Callable[[RouterSettings], Lines]], ...]] = (
    ("clients", _clients),
    ("keys", _keys),
    ("admin", _admin),
    ("endpoints", _endpoints),
    ("models", _models),
    ("policy", _policy),
    ("tokenizers", _tokenizers),
    ("replicas", _replicas),
    ("access log", _access_log),
)


@contextmanager
def _blamed(flag: str) -> Iterator[None]:
    """Errors name the flag, where they do not do so by themselves."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag}: {error}") from None


def _listed(texts: list[str]) -> Lines:
    yield from texts[:_MOST_LISTED]
    if len(texts) > _MOST_LISTED:
        yield f"and {len(texts) - _MOST_LISTED} more"


def _url(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}" if port else f"http://{shown}, a free port"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _key_text(key: Key) -> str:
    models = ", ".join(sorted(key.models) + [f"{prefix}*" for prefix in key.prefixes]) or "none"
    limits = [
        *([f"{key.requests_per_minute} a minute"] if key.requests_per_minute is not None else ()),
        *([f"{key.max_concurrent} at once"] if key.max_concurrent is not None else ()),
        *(["a cache salt of its own"] if key.cache_salt is not None else ()),
        *(["disabled"] if key.disabled else ()),
    ]
    return "; ".join([f"{key.name}: models {models}", *limits])


def _endpoint_text(spec: EndpointSpec) -> str:
    events = f", KV events from {spec.kv_events}" if spec.kv_events else ""
    return f"{spec.name}: {spec.url}, {spec.backend}{events}"
